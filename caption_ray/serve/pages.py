"""The pages, made on the server: the one that captions pictures, and the API's description for people.

The latter is made from the same document that programs get. Neither asks anything of any network but its own parts.
"""

import json
from typing import Any

from caption_ray import templates
from caption_ray.serve.schemas import Limits

Json = dict[str, Any]


def render_page(limits: Limits) -> str:
    """Return the page of a service with these limits, so that it sends nothing that would be refused as too large."""
    return templates.environment("serve").get_template("page.html").render(limits=limits)


def render_docs(document: Json) -> str:
    """Return the page for an OpenAPI document."""
    environment = templates.environment("serve")
    environment.filters["pretty"] = lambda value: value if isinstance(value, str) else json.dumps(value, indent=2)
    environment.filters["kind"] = kind_of
    operations = [
        {"path": path, "method": method, **operation, "answers": _answers(document, operation)}
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return environment.get_template("docs.html").render(document=document, operations=operations)


def kind_of(schema: Json) -> str:
    """Say a JSON schema's type in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[-1])
    if "anyOf" in schema:
        return " or ".join(kind_of(part) for part in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {kind_of(schema['items'])}" if "items" in schema else "list"
    bounds = [f"{sign} {schema[key]}" for key, sign in (("minimum", "≥"), ("maximum", "≤")) if key in schema]
    return " ".join([str(schema.get("type", "anything")), *bounds])


def _answers(document: Json, operation: Json) -> list[Json]:
    """Return the operation's responses, references resolved, each with its examples."""
    answers = []
    for status, response in operation["responses"].items():
        if "$ref" in response:
            response = document["components"]["responses"][response["$ref"].rsplit("/", 1)[-1]]
        examples = []
        for media in response.get("content", {}).values():
            examples += [media["example"]] if media.get("example") is not None else []
            examples += [example["value"] for example in media.get("examples", {}).values()]
        answers.append({"status": status, "description": response["description"], "examples": examples})
    return answers
