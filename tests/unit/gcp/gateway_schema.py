"""Strict models of what the gateway's manifests use of the Gateway API (v1) and of GKE's policies (networking.gke.io/v1).

The packages that hold Kubernetes' schemas hold those of its core alone. These say no more than the fields that are used
here: a typo, a wrong type or a value out of range is found, and a field that is new to them must be added first.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: Name
    namespace: Name
    annotations: dict[str, str] = {}


class Namespaces(Strict):
    from_: Literal["All", "Same", "Selector"] = Field(alias="from")


class AllowedRoutes(Strict):
    namespaces: Namespaces


class Listener(Strict):
    name: Name
    protocol: Literal["HTTP", "HTTPS"]
    port: Port
    allowedRoutes: AllowedRoutes


class Address(Strict):
    type: Literal["NamedAddress", "IPAddress"]
    value: str


class GatewaySpec(Strict):
    gatewayClassName: Literal["gke-l7-global-external-managed", "gke-l7-regional-external-managed"]
    addresses: list[Address]
    listeners: list[Listener]


class Gateway(Strict):
    apiVersion: Literal["gateway.networking.k8s.io/v1"]
    kind: Literal["Gateway"]
    metadata: Metadata
    spec: GatewaySpec


class PathMatch(Strict):
    type: Literal["Exact", "PathPrefix"]
    value: Annotated[str, Field(pattern="^/")]


class Match(Strict):
    path: PathMatch


class Redirect(Strict):
    scheme: Literal["https"]
    statusCode: Literal[301, 302]


class Filter(Strict):
    type: Literal["RequestRedirect"]
    requestRedirect: Redirect


class Backend(Strict):
    name: Name
    port: Port


class Rule(Strict):
    matches: list[Match] = Field([], max_length=64)
    filters: list[Filter] = []
    backendRefs: list[Backend] = []


class Parent(Strict):
    name: Name
    sectionName: Name


class RouteSpec(Strict):
    parentRefs: list[Parent]
    hostnames: list[Annotated[str, Field(pattern=r"^[a-z0-9.-]+\.[a-z]+$")]] = []
    rules: list[Rule]


class HTTPRoute(Strict):
    apiVersion: Literal["gateway.networking.k8s.io/v1"]
    kind: Literal["HTTPRoute"]
    metadata: Metadata
    spec: RouteSpec


class Target(Strict):
    group: Literal[""]
    kind: Literal["Service"]
    name: Name


class HTTPCheck(Strict):
    port: Port
    requestPath: Annotated[str, Field(pattern="^/")]


class Check(Strict):
    type: Literal["HTTP"]
    httpHealthCheck: HTTPCheck


class HealthDefault(Strict):
    checkIntervalSec: Annotated[int, Field(ge=1, le=300)]
    timeoutSec: Annotated[int, Field(ge=1, le=300)]
    healthyThreshold: Annotated[int, Field(ge=1, le=10)]
    unhealthyThreshold: Annotated[int, Field(ge=1, le=10)]
    config: Check


class HealthSpec(Strict):
    default: HealthDefault
    targetRef: Target


class HealthCheckPolicy(Strict):
    apiVersion: Literal["networking.gke.io/v1"]
    kind: Literal["HealthCheckPolicy"]
    metadata: Metadata
    spec: HealthSpec


class Draining(Strict):
    drainingTimeoutSec: Annotated[int, Field(ge=0, le=3600)]


class Logging(Strict):
    enabled: bool
    sampleRate: Annotated[int, Field(ge=0, le=1_000_000)]


class BackendDefault(Strict):
    timeoutSec: Annotated[int, Field(ge=1, le=2147483647)]
    connectionDraining: Draining
    logging: Logging


class BackendSpec(Strict):
    default: BackendDefault
    targetRef: Target


class GCPBackendPolicy(Strict):
    apiVersion: Literal["networking.gke.io/v1"]
    kind: Literal["GCPBackendPolicy"]
    metadata: Metadata
    spec: BackendSpec


GATEWAY_KINDS = TypeAdapter[Gateway | HTTPRoute | HealthCheckPolicy | GCPBackendPolicy](
    Annotated[Gateway | HTTPRoute | HealthCheckPolicy | GCPBackendPolicy, Field(discriminator="kind")]
)
