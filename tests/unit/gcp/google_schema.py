"""Strict schemas of what the manifests use of the Gateway API (v1), of GKE's policies for it, and of its PodMonitoring.

The packages that hold Kubernetes' schemas hold those of its core alone. These know no more than the fields that are
used here, by the API references: a typo, a wrong type or a value out of range is found, and another field must be added
first.
"""

from typing import Any

Schema = dict[str, Any]


def record(optional: tuple[str, ...] = (), **properties: Schema) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def one_of(*values: object) -> Schema:
    return {"enum": list(values)}


def text(pattern: str) -> Schema:
    return {"type": "string", "pattern": pattern}


def whole(least: int, most: int) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most}


def list_of(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1, "maxItems": 64}


NAME, PATH, PORT = text("^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"), text("^/"), whole(1, 65535)
METADATA = record(("annotations",), name=NAME, namespace=NAME, annotations={"additionalProperties": text("")})
HEADER = text(r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$")
SERVICE = record(group=one_of(""), kind=one_of("Service"), name=NAME)


def kind(version: str, name: str, spec: Schema) -> Schema:
    return record(apiVersion=one_of(version), kind=one_of(name), metadata=METADATA, spec=spec)


LISTENER = record(
    name=NAME,
    protocol=one_of("HTTP", "HTTPS"),
    port=PORT,
    allowedRoutes=record(namespaces=record(**{"from": one_of("All", "Same")})),
)
RULE = record(
    ("matches", "filters", "backendRefs"),
    matches=list_of(record(path=record(type=one_of("Exact", "PathPrefix"), value=PATH))),
    filters=list_of(
        {
            "oneOf": [
                record(
                    type=one_of("RequestRedirect"),
                    requestRedirect=record(scheme=one_of("https"), statusCode=one_of(301, 302)),
                ),
                record(
                    type=one_of("RequestHeaderModifier"),
                    requestHeaderModifier=record(remove={**list_of(HEADER), "maxItems": 16, "uniqueItems": True}),
                ),
            ]
        }
    ),
    backendRefs=list_of(record(name=NAME, port=PORT)),
)
HEALTH = record(
    checkIntervalSec=whole(1, 300),
    timeoutSec=whole(1, 300),
    healthyThreshold=whole(1, 10),
    unhealthyThreshold=whole(1, 10),
    config=record(type=one_of("HTTP"), httpHealthCheck=record(port=PORT, requestPath=PATH)),
)
BACKEND = record(
    timeoutSec=whole(1, (1 << 31) - 1),
    connectionDraining=record(drainingTimeoutSec=whole(0, 3600)),
    logging=record(enabled={"type": "boolean"}, sampleRate=whole(0, 1_000_000)),
)
RELABELING = record(
    action=one_of("keep", "drop"),
    sourceLabels=list_of(text("^[a-zA-Z_]+$")),
    regex={"type": "string", "format": "regex"},
)
GOOGLE_KINDS = {
    "Gateway": kind(
        "gateway.networking.k8s.io/v1",
        "Gateway",
        record(
            gatewayClassName=one_of("gke-l7-global-external-managed"),
            addresses=list_of(record(type=one_of("NamedAddress"), value=NAME)),
            listeners=list_of(LISTENER),
        ),
    ),
    "HTTPRoute": kind(
        "gateway.networking.k8s.io/v1",
        "HTTPRoute",
        record(
            ("hostnames",),
            parentRefs=list_of(record(name=NAME, sectionName=NAME)),
            hostnames=list_of(text(r"^[a-z0-9.-]+\.[a-z]+$")),
            rules=list_of(RULE),
        ),
    ),
    "PodMonitoring": kind(
        "monitoring.googleapis.com/v1",
        "PodMonitoring",
        record(
            selector=record(matchLabels={"additionalProperties": text("")}),
            endpoints=list_of(record(port=NAME, interval=text("^[0-9]+s$"), metricRelabeling=list_of(RELABELING))),
        ),
    ),
    "HealthCheckPolicy": kind("networking.gke.io/v1", "HealthCheckPolicy", record(default=HEALTH, targetRef=SERVICE)),
    "GCPBackendPolicy": kind("networking.gke.io/v1", "GCPBackendPolicy", record(default=BACKEND, targetRef=SERVICE)),
}
