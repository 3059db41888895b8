// What a user of aws-sdk-go-v2 runs: create, invoke, scale, metrics, alarms, delete. Prints what it
// saw as one line of JSON.
//
// `zeropull-go NAME IMAGE MODEL_DATA`; region, key and endpoints come from the environment.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/applicationautoscaling"
	scaling "github.com/aws/aws-sdk-go-v2/service/applicationautoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	metrics "github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"
	"github.com/aws/aws-sdk-go-v2/service/sagemaker"
	sm "github.com/aws/aws-sdk-go-v2/service/sagemaker/types"
	"github.com/aws/aws-sdk-go-v2/service/sagemakerruntime"
	runtime "github.com/aws/aws-sdk-go-v2/service/sagemakerruntime/types"
	"github.com/aws/smithy-go"
)

const (
	role      = "arn:aws:iam::000000000000:role/go"
	waitLimit = 2 * time.Minute
	dimension = scaling.ScalableDimensionSageMakerVariantDesiredInstanceCount
)

type client struct {
	ctx       context.Context
	name      string
	endpoints *sagemaker.Client
	invoking  *sagemakerruntime.Client
	scaling   *applicationautoscaling.Client
	metrics   *cloudwatch.Client
	seen      map[string]any
}

func main() {
	ctx := context.Background()
	settings, err := config.LoadDefaultConfig(ctx)
	check(err)
	c := client{
		ctx:       ctx,
		name:      os.Args[1],
		endpoints: sagemaker.NewFromConfig(settings),
		invoking:  sagemakerruntime.NewFromConfig(settings),
		scaling:   applicationautoscaling.NewFromConfig(settings),
		metrics:   cloudwatch.NewFromConfig(settings),
		seen:      map[string]any{},
	}
	c.create(os.Args[2], os.Args[3])
	c.invoke()
	c.scale()
	c.measure()
	c.watch()
	c.fail()
	c.remove()
	line, err := json.Marshal(c.seen)
	check(err)
	fmt.Println(string(line))
}

func (c *client) create(image, modelData string) {
	_, err := c.endpoints.CreateModel(c.ctx, &sagemaker.CreateModelInput{
		ModelName:        &c.name,
		ExecutionRoleArn: aws.String(role),
		PrimaryContainer: &sm.ContainerDefinition{Image: &image, ModelDataUrl: &modelData},
	})
	check(err)
	_, err = c.endpoints.CreateEndpointConfig(c.ctx, &sagemaker.CreateEndpointConfigInput{
		EndpointConfigName: &c.name,
		ProductionVariants: []sm.ProductionVariant{{
			VariantName:          aws.String("main"),
			ModelName:            &c.name,
			InstanceType:         sm.ProductionVariantInstanceTypeMlM5Large,
			InitialInstanceCount: aws.Int32(1),
		}},
	})
	check(err)
	_, err = c.endpoints.CreateEndpoint(c.ctx, &sagemaker.CreateEndpointInput{
		EndpointName:       &c.name,
		EndpointConfigName: &c.name,
		Tags:               []sm.Tag{{Key: aws.String("team"), Value: aws.String("go")}},
	})
	check(err)
	waiter := sagemaker.NewEndpointInServiceWaiter(c.endpoints, func(o *sagemaker.EndpointInServiceWaiterOptions) {
		o.MinDelay, o.MaxDelay = time.Second, time.Second
	})
	described, err := waiter.WaitForOutput(
		c.ctx, &sagemaker.DescribeEndpointInput{EndpointName: &c.name}, waitLimit)
	check(err)
	c.seen["status"] = described.EndpointStatus
}

func (c *client) invoke() {
	answer, err := c.invoking.InvokeEndpoint(c.ctx, &sagemakerruntime.InvokeEndpointInput{
		EndpointName: &c.name, Body: []byte("hello"),
	})
	check(err)
	c.seen["answer"] = string(answer.Body)
	c.seen["variant"] = aws.ToString(answer.InvokedProductionVariant)
	streamed, err := c.invoking.InvokeEndpointWithResponseStream(
		c.ctx, &sagemakerruntime.InvokeEndpointWithResponseStreamInput{
			EndpointName: &c.name, Body: []byte("hello"),
		})
	check(err)
	stream := streamed.GetStream()
	var parts []byte
	for event := range stream.Events() {
		if part, ok := event.(*runtime.ResponseStreamMemberPayloadPart); ok {
			parts = append(parts, part.Value.Bytes...)
		}
	}
	check(stream.Err())
	check(stream.Close())
	c.seen["streamed"] = string(parts)
}

func (c *client) scale() {
	resource := "endpoint/" + c.name + "/variant/main"
	_, err := c.scaling.RegisterScalableTarget(c.ctx, &applicationautoscaling.RegisterScalableTargetInput{
		ServiceNamespace: scaling.ServiceNamespaceSagemaker, ResourceId: &resource,
		ScalableDimension: dimension, MinCapacity: aws.Int32(2), MaxCapacity: aws.Int32(3),
	})
	check(err)
	put, err := c.scaling.PutScalingPolicy(c.ctx, &applicationautoscaling.PutScalingPolicyInput{
		ServiceNamespace: scaling.ServiceNamespaceSagemaker, ResourceId: &resource,
		ScalableDimension: dimension, PolicyName: aws.String("track"),
		PolicyType: scaling.PolicyTypeTargetTrackingScaling,
		TargetTrackingScalingPolicyConfiguration: &scaling.TargetTrackingScalingPolicyConfiguration{
			TargetValue: aws.Float64(5),
			PredefinedMetricSpecification: &scaling.PredefinedMetricSpecification{
				PredefinedMetricType: scaling.MetricTypeSageMakerVariantConcurrentRequestsPerModelHighResolution,
			},
		},
	})
	check(err)
	c.seen["policy_alarms"] = len(put.Alarms)
	c.seen["instances"] = c.until("two instances", func() any {
		described, err := c.endpoints.DescribeEndpoint(
			c.ctx, &sagemaker.DescribeEndpointInput{EndpointName: &c.name})
		check(err)
		if count := aws.ToInt32(described.ProductionVariants[0].CurrentInstanceCount); count == 2 {
			return count
		}
		return nil
	})
	activities, err := c.scaling.DescribeScalingActivities(
		c.ctx, &applicationautoscaling.DescribeScalingActivitiesInput{
			ServiceNamespace: scaling.ServiceNamespaceSagemaker, ResourceId: &resource,
			ScalableDimension: dimension,
		})
	check(err)
	c.seen["activities"] = len(activities.ScalingActivities) > 0
	other, err := c.scaling.DescribeScalableTargets(
		c.ctx, &applicationautoscaling.DescribeScalableTargetsInput{
			ServiceNamespace: scaling.ServiceNamespaceEcs,
		})
	check(err)
	c.seen["of_ecs"] = len(other.ScalableTargets)
}

// measure writes and reads metrics of its own, and lists those of the endpoint.
func (c *client) measure() {
	minute := time.Now().UTC().Truncate(time.Minute).Add(-2 * time.Minute)
	_, err := c.metrics.PutMetricData(c.ctx, &cloudwatch.PutMetricDataInput{
		Namespace: aws.String("go"),
		MetricData: []metrics.MetricDatum{
			{MetricName: &c.name, Timestamp: &minute, Value: aws.Float64(1.5)},
			{MetricName: &c.name, Timestamp: &minute, Values: []float64{2, 3}, Counts: []float64{1, 2}},
		},
	})
	check(err)
	start, end := minute.Add(-time.Minute), minute.Add(time.Minute)
	data, err := c.metrics.GetMetricData(c.ctx, &cloudwatch.GetMetricDataInput{
		StartTime: &start, EndTime: &end,
		MetricDataQueries: []metrics.MetricDataQuery{
			{Id: aws.String("m"), MetricStat: &metrics.MetricStat{
				Metric: &metrics.Metric{Namespace: aws.String("go"), MetricName: &c.name},
				Period: aws.Int32(60), Stat: aws.String("Sum"),
			}},
			{Id: aws.String("twice"), Expression: aws.String("m * 2")},
		},
	})
	check(err)
	c.seen["sums"] = []any{data.MetricDataResults[0].Values, data.MetricDataResults[1].Values}
	c.seen["same_minute"] = data.MetricDataResults[0].Timestamps[0].Equal(minute)
	statistics, err := c.metrics.GetMetricStatistics(c.ctx, &cloudwatch.GetMetricStatisticsInput{
		Namespace: aws.String("go"), MetricName: &c.name, StartTime: &start, EndTime: &end,
		Period: aws.Int32(60), Statistics: []metrics.Statistic{metrics.StatisticMaximum},
	})
	check(err)
	c.seen["maximum"] = *statistics.Datapoints[0].Maximum
	c.seen["listed"] = c.until("metrics of the endpoint", func() any {
		listed, err := c.metrics.ListMetrics(c.ctx, &cloudwatch.ListMetricsInput{
			Namespace: aws.String("AWS/SageMaker"),
			Dimensions: []metrics.DimensionFilter{
				{Name: aws.String("EndpointName"), Value: &c.name},
			},
		})
		check(err)
		if len(listed.Metrics) == 0 {
			return nil
		}
		return true
	})
}

func (c *client) watch() {
	_, err := c.metrics.PutMetricAlarm(c.ctx, &cloudwatch.PutMetricAlarmInput{
		AlarmName: &c.name, Namespace: aws.String("go"), MetricName: &c.name,
		Statistic: metrics.StatisticSum, Period: aws.Int32(60), EvaluationPeriods: aws.Int32(1),
		Threshold: aws.Float64(1), ComparisonOperator: metrics.ComparisonOperatorGreaterThanThreshold,
		Tags: []metrics.Tag{{Key: aws.String("team"), Value: aws.String("go")}},
	})
	check(err)
	described, err := c.metrics.DescribeAlarms(
		c.ctx, &cloudwatch.DescribeAlarmsInput{AlarmNames: []string{c.name}})
	check(err)
	alarm := described.MetricAlarms[0]
	c.seen["alarm_updated"] = time.Since(*alarm.AlarmConfigurationUpdatedTimestamp) < time.Hour
	tags, err := c.metrics.ListTagsForResource(
		c.ctx, &cloudwatch.ListTagsForResourceInput{ResourceARN: alarm.AlarmArn})
	check(err)
	c.seen["alarm_tag"] = aws.ToString(tags.Tags[0].Value)
	_, err = c.metrics.DeleteAlarms(c.ctx, &cloudwatch.DeleteAlarmsInput{AlarmNames: []string{c.name}})
	check(err)
}

// fail looks at errors as programs tell them apart: by type, and by code.
func (c *client) fail() {
	_, err := c.metrics.SetAlarmState(c.ctx, &cloudwatch.SetAlarmStateInput{
		AlarmName: aws.String("unknown"), StateValue: metrics.StateValueOk, StateReason: aws.String("r"),
	})
	var missing *metrics.ResourceNotFound
	c.seen["typed_error"] = errors.As(err, &missing)
	start := time.Now()
	_, err = c.metrics.GetMetricStatistics(c.ctx, &cloudwatch.GetMetricStatisticsInput{
		Namespace: aws.String("go"), MetricName: &c.name, StartTime: &start, EndTime: &start,
		Period: aws.Int32(60), Statistics: []metrics.Statistic{metrics.StatisticSum},
	})
	c.seen["code"] = code(err)
	name := "unknown"
	_, err = c.endpoints.DescribeEndpoint(
		c.ctx, &sagemaker.DescribeEndpointInput{EndpointName: &name})
	c.seen["endpoint_code"] = code(err)
	_, err = c.invoking.InvokeEndpoint(c.ctx, &sagemakerruntime.InvokeEndpointInput{
		EndpointName: &name, Body: []byte("x"),
	})
	c.seen["invoke_code"] = code(err)
}

func (c *client) remove() {
	_, err := c.endpoints.DeleteEndpoint(c.ctx, &sagemaker.DeleteEndpointInput{EndpointName: &c.name})
	check(err)
	waiter := sagemaker.NewEndpointDeletedWaiter(c.endpoints, func(o *sagemaker.EndpointDeletedWaiterOptions) {
		o.MinDelay, o.MaxDelay = time.Second, time.Second
	})
	check(waiter.Wait(c.ctx, &sagemaker.DescribeEndpointInput{EndpointName: &c.name}, waitLimit))
	_, err = c.endpoints.DeleteEndpointConfig(
		c.ctx, &sagemaker.DeleteEndpointConfigInput{EndpointConfigName: &c.name})
	check(err)
	_, err = c.endpoints.DeleteModel(c.ctx, &sagemaker.DeleteModelInput{ModelName: &c.name})
	check(err)
	left, err := c.scaling.DescribeScalableTargets(
		c.ctx, &applicationautoscaling.DescribeScalableTargetsInput{
			ServiceNamespace: scaling.ServiceNamespaceSagemaker,
		})
	check(err)
	c.seen["targets_left"] = len(left.ScalableTargets)
}

func (c *client) until(what string, look func() any) any {
	deadline := time.Now().Add(waitLimit)
	for time.Now().Before(deadline) {
		if found := look(); found != nil {
			return found
		}
		time.Sleep(500 * time.Millisecond)
	}
	check(fmt.Errorf("%s: not within %s", what, waitLimit))
	return nil
}

func code(err error) string {
	var failure smithy.APIError
	if errors.As(err, &failure) {
		return failure.ErrorCode()
	}
	return fmt.Sprint(err)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
