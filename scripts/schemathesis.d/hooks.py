"""What schemathesis is told beside the served description."""

import schemathesis


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """Leaves `default` out: it stands for what any request may meet, and would let every status pass. Schemas of event
    streams describe an event's data (3.1 has no word for events), which schemathesis takes for the event."""
    for item in raw_schema.get("paths", {}).values():
        for operation in item.values():
            operation.get("responses", {}).pop("default", None)
            for response in operation.get("responses", {}).values():
                response.get("content", {}).get("text/event-stream", {}).pop("schema", None)

