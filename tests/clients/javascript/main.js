// What a user of the JavaScript SDK runs: create, invoke, scale, metrics, alarms, delete. Prints what
// it saw as one line of JSON.
//
// `node main.js NAME IMAGE MODEL_DATA`; region, key and endpoints come from the environment.

import * as scaling from "@aws-sdk/client-application-auto-scaling";
import * as metrics from "@aws-sdk/client-cloudwatch";
import * as sagemaker from "@aws-sdk/client-sagemaker";
import * as runtime from "@aws-sdk/client-sagemaker-runtime";

const ROLE = "arn:aws:iam::000000000000:role/javascript";
const WAIT_S = 120;
const WAIT = { maxWaitTime: WAIT_S, minDelay: 1, maxDelay: 1 };
const [name, image, modelData] = process.argv.slice(2);
const endpoints = new sagemaker.SageMaker();
const invoking = new runtime.SageMakerRuntime();
const autoscaling = new scaling.ApplicationAutoScaling();
const cloudwatch = new metrics.CloudWatch();
const seen = {};

async function create() {
  await endpoints.createModel({
    ModelName: name,
    ExecutionRoleArn: ROLE,
    PrimaryContainer: { Image: image, ModelDataUrl: modelData },
  });
  await endpoints.createEndpointConfig({
    EndpointConfigName: name,
    ProductionVariants: [
      { VariantName: "main", ModelName: name, InstanceType: "ml.m5.large", InitialInstanceCount: 1 },
    ],
  });
  await endpoints.createEndpoint({
    EndpointName: name,
    EndpointConfigName: name,
    Tags: [{ Key: "team", Value: "javascript" }],
  });
  await sagemaker.waitUntilEndpointInService(
    { client: endpoints, ...WAIT },
    { EndpointName: name },
  );
  seen.status = (await endpoints.describeEndpoint({ EndpointName: name })).EndpointStatus;
}

async function invoke() {
  const answer = await invoking.invokeEndpoint({ EndpointName: name, Body: "hello" });
  seen.answer = new TextDecoder().decode(answer.Body);
  seen.variant = answer.InvokedProductionVariant;
  const streamed = await invoking.invokeEndpointWithResponseStream({
    EndpointName: name,
    Body: "hello",
  });
  seen.streamed = "";
  for await (const event of streamed.Body) {
    seen.streamed += new TextDecoder().decode(event.PayloadPart?.Bytes);
  }
}

async function scale() {
  const target = {
    ServiceNamespace: "sagemaker",
    ResourceId: `endpoint/${name}/variant/main`,
    ScalableDimension: "sagemaker:variant:DesiredInstanceCount",
  };
  await autoscaling.registerScalableTarget({ ...target, MinCapacity: 2, MaxCapacity: 3 });
  const put = await autoscaling.putScalingPolicy({
    ...target,
    PolicyName: "track",
    PolicyType: "TargetTrackingScaling",
    TargetTrackingScalingPolicyConfiguration: {
      TargetValue: 5,
      PredefinedMetricSpecification: {
        PredefinedMetricType: "SageMakerVariantConcurrentRequestsPerModelHighResolution",
      },
    },
  });
  seen.policy_alarms = put.Alarms.length;
  seen.instances = await until("two instances", async () => {
    const described = await endpoints.describeEndpoint({ EndpointName: name });
    const count = described.ProductionVariants[0].CurrentInstanceCount;
    return count === 2 && count;
  });
  const { ScalingActivities } = await autoscaling.describeScalingActivities(target);
  seen.activities = ScalingActivities.length > 0;
  const ecs = await autoscaling.describeScalableTargets({ ServiceNamespace: "ecs" });
  seen.of_ecs = ecs.ScalableTargets.length;
}

// Writes and reads metrics of its own, and lists those of the endpoint.
async function measure() {
  const minute = new Date(Math.floor(Date.now() / 60000 - 2) * 60000);
  await cloudwatch.putMetricData({
    Namespace: "javascript",
    MetricData: [
      { MetricName: name, Timestamp: minute, Value: 1.5 },
      { MetricName: name, Timestamp: minute, Values: [2, 3], Counts: [1, 2] },
    ],
  });
  const range = {
    StartTime: new Date(minute.getTime() - 60000),
    EndTime: new Date(minute.getTime() + 60000),
  };
  const data = await cloudwatch.getMetricData({
    ...range,
    MetricDataQueries: [
      {
        Id: "m",
        MetricStat: {
          Metric: { Namespace: "javascript", MetricName: name },
          Period: 60,
          Stat: "Sum",
        },
      },
      { Id: "twice", Expression: "m * 2" },
    ],
  });
  seen.sums = data.MetricDataResults.map((result) => result.Values);
  seen.same_minute = data.MetricDataResults[0].Timestamps[0].getTime() === minute.getTime();
  const statistics = await cloudwatch.getMetricStatistics({
    ...range,
    Namespace: "javascript",
    MetricName: name,
    Period: 60,
    Statistics: ["Maximum"],
  });
  seen.maximum = statistics.Datapoints[0].Maximum;
  seen.listed = await until("metrics of the endpoint", async () => {
    const listed = await cloudwatch.listMetrics({
      Namespace: "AWS/SageMaker",
      Dimensions: [{ Name: "EndpointName", Value: name }],
    });
    return listed.Metrics.length > 0;
  });
}

async function watch() {
  await cloudwatch.putMetricAlarm({
    AlarmName: name,
    Namespace: "javascript",
    MetricName: name,
    Statistic: "Sum",
    Period: 60,
    EvaluationPeriods: 1,
    Threshold: 1,
    ComparisonOperator: "GreaterThanThreshold",
    Tags: [{ Key: "team", Value: "javascript" }],
  });
  const { MetricAlarms } = await cloudwatch.describeAlarms({ AlarmNames: [name] });
  const [alarm] = MetricAlarms;
  seen.alarm_updated = Date.now() - alarm.AlarmConfigurationUpdatedTimestamp.getTime() < 3600000;
  const tags = await cloudwatch.listTagsForResource({ ResourceARN: alarm.AlarmArn });
  seen.alarm_tag = tags.Tags[0].Value;
  await cloudwatch.deleteAlarms({ AlarmNames: [name] });
}

// Errors as programs tell them apart: by class, and by name.
async function fail() {
  const unknown = { AlarmName: "unknown", StateValue: "OK", StateReason: "r" };
  const missing = await failure(cloudwatch.setAlarmState(unknown));
  seen.typed_error = missing instanceof metrics.ResourceNotFound;
  const now = new Date();
  const none = {
    Namespace: "javascript",
    MetricName: name,
    StartTime: now,
    EndTime: now,
    Period: 60,
    Statistics: ["Sum"],
  };
  seen.code = (await failure(cloudwatch.getMetricStatistics(none))).name;
  const endpoint = { EndpointName: "unknown" };
  seen.endpoint_code = (await failure(endpoints.describeEndpoint(endpoint))).name;
  seen.invoke_code = (await failure(invoking.invokeEndpoint({ ...endpoint, Body: "x" }))).name;
}

async function remove() {
  await endpoints.deleteEndpoint({ EndpointName: name });
  await sagemaker.waitUntilEndpointDeleted({ client: endpoints, ...WAIT }, { EndpointName: name });
  await endpoints.deleteEndpointConfig({ EndpointConfigName: name });
  await endpoints.deleteModel({ ModelName: name });
  const left = await autoscaling.describeScalableTargets({ ServiceNamespace: "sagemaker" });
  seen.targets_left = left.ScalableTargets.length;
}

async function until(what, look) {
  const deadline = Date.now() + WAIT_S * 1000;
  while (Date.now() < deadline) {
    const found = await look();
    if (found) return found;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  throw new Error(`${what}: not within ${WAIT_S} s`);
}

async function failure(call) {
  try {
    await call;
  } catch (error) {
    return error;
  }
  throw new Error("a call that must fail did not");
}

await create();
await invoke();
await scale();
await measure();
await watch();
await fail();
await remove();
console.log(JSON.stringify(seen));
