"""InvokeEndpoint: authentication, routing, queueing, streaming, exact concurrency."""
