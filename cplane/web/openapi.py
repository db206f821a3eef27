"""The OpenAPI 3.1 document, built from the operations, the pydantic models and the registered jobs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema

from cplane import __version__
from cplane.jobs.definition import AnyJob
from cplane.jobs.names import SESSION_NAME
from cplane.web.handlers.catalog import describe
from cplane.web.inputs import SubmitBody
from cplane.web.operations import OPERATIONS
from cplane.web.problems import (
    CROSS_ORIGIN,
    HOST_NOT_ALLOWED,
    MEDIA_TYPE,
    TIMED_OUT,
    UNAUTHORIZED,
    ProblemType,
    ProblemView,
)
from cplane.web.routing import Operation, ResponseSpec

if TYPE_CHECKING:
    from pydantic._internal._dataclasses import PydanticDataclass  # models_json_schema takes these too

Schema = dict[str, Any]
Models = Mapping[type[BaseModel], Schema]
"""Model → the schema to use for it: a reference to a component."""

REFERENCE = "#/components/schemas/{model}"

DESCRIPTION = """Submit jobs, read their records, fetch their artifacts.

Times are ISO 8601 in UTC. Errors are `application/problem+json` (RFC 9457). A POST returns 200 with a record that is
final, 202 with one that is not final yet."""

PATH_PARAMETERS = {
    "id": {"description": "id of the job", "schema": {"type": "string", "format": "uuid"}},
    "name": {"description": "name of the artifact", "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,200}$"}},
    "session": {
        "description": "name of the session",
        "schema": {"type": "string", "pattern": f"^{SESSION_NAME.pattern}$"},
    },
}


class _Generator(GenerateJsonSchema):
    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012  pydantic declares it this way


def document(jobs: Sequence[AnyJob], *, root_path: str = "", secured: bool = False) -> Schema:
    """Return the OpenAPI document.

    Args:
        jobs: the jobs that can be submitted; each gets a schema for its submission.
        root_path: where the app is mounted; default: at the root.
        secured: True if the server requires an API key.
    """
    models, schemas = _schemas(jobs)
    schemas |= _submissions(jobs, models)
    spec: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": "cplane",
            "version": __version__,
            "description": DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": root_path or "/"}],
        "tags": [{"name": "jobs"}, {"name": "catalog"}, {"name": "queues"}, {"name": "sessions"}, {"name": "health"}],
        "paths": _paths(models, secured),
        "components": {"schemas": schemas},
    }
    if secured:
        spec["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return spec


def _schemas(jobs: Sequence[AnyJob]) -> tuple[Models, Schema]:
    outputs: list[type[BaseModel]] = [
        response.model
        for operation in OPERATIONS
        for response in operation.responses.values()
        if response.model is not None
    ]
    bodies = [operation.body for operation in OPERATIONS if operation.body is not None]
    inputs: list[type[BaseModel]] = [*bodies, *(job.signature.arguments for job in jobs if _has_schema(job))]
    wanted = [*_in_mode([*outputs, ProblemView], "serialization"), *_in_mode(inputs, "validation")]
    found, definitions = models_json_schema(wanted, ref_template=REFERENCE, schema_generator=_Generator)
    schemas: Mapping[Any, Schema] = {model: schema for (model, _), schema in found.items()}
    return schemas, definitions["$defs"]


def _in_mode(
    models: Iterable[type[BaseModel]], mode: JsonSchemaMode
) -> list[tuple[type[BaseModel] | type["PydanticDataclass"], JsonSchemaMode]]:
    return [(model, mode) for model in dict.fromkeys(models)]


def _has_schema(job: AnyJob) -> bool:
    try:
        job.schema()
    except PydanticUserError:
        return False
    return True


# submissions: one schema for each job, discriminated by "job"


def _submissions(jobs: Sequence[AnyJob], models: Models) -> Schema:
    if not jobs:
        return {"Submission": models[SubmitBody]}
    components = {_component(job): _submission(job, models) for job in jobs}
    references = {job.name: f"#/components/schemas/{_component(job)}" for job in jobs}
    return components | {
        "Submission": {
            "description": "A job with its arguments",
            "oneOf": [{"$ref": reference} for reference in references.values()],
            "discriminator": {"propertyName": "job", "mapping": references},
        }
    }


def _component(job: AnyJob) -> str:
    return f"job.{job.name.replace(':', '..')}"  # the name of a component must not contain a colon


def _submission(job: AnyJob, models: Models) -> Schema:
    arguments = job.signature.arguments
    required = any(field.is_required() for field in arguments.model_fields.values())
    options = SubmitBody.model_json_schema(ref_template=REFERENCE)["properties"]
    return {
        "title": job.name,
        "description": describe(job),
        "type": "object",
        "properties": {
            "job": {"type": "string", "enum": [job.name]},  # not const, from which tools derive no example
            "args": models.get(arguments, {"type": "object"}),
            **{name: options[name] for name in ("queue", "priority", "delay", "at", "timeout")},
        },
        "required": ["job", "args"] if required else ["job"],
        "additionalProperties": False,
    }


# paths


def _paths(models: Models, secured: bool) -> Schema:
    paths: dict[str, Schema] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, models, secured)
    return paths


def _operation(operation: Operation, models: Models, secured: bool) -> Schema:
    needs_key = secured and operation.path.startswith("/api/")
    refused = [UNAUTHORIZED] if needs_key else [] if secured else [HOST_NOT_ALLOWED, CROSS_ORIGIN]
    problem_types = [*operation.problems, TIMED_OUT, *refused]
    responses = {str(status): _response(response, models) for status, response in operation.responses.items()}
    spec: Schema = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": responses
        | {status: problem for status, problem in _problems(problem_types, models).items() if status not in responses},
    }
    if operation.description:
        spec["description"] = operation.description
    if parameters := [*_path_parameters(operation), *_query_parameters(operation), *_header_parameters(operation)]:
        spec["parameters"] = parameters
    if operation.body is not None:
        schema = {"$ref": "#/components/schemas/Submission"} if operation.body is SubmitBody else models[operation.body]
        spec["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if needs_key:
        spec["security"] = [{"key": []}]
    return spec


def _response(response: ResponseSpec, models: Models) -> Schema:
    spec: Schema = {"description": response.description}
    if response.media_type:
        schema = {} if response.model is None else models[response.model]
        spec["content"] = {response.media_type: {"schema": schema}}
    if response.headers:
        spec["headers"] = {
            name: {"description": description, "schema": {"type": "string"}}
            for name, description in response.headers.items()
        }
    return spec


def _problems(problem_types: Iterable[ProblemType], models: Models) -> Schema:
    by_status: dict[str, list[str]] = {}
    for problem_type in problem_types:
        by_status.setdefault(str(problem_type.status), []).append(problem_type.title)
    content = {MEDIA_TYPE: {"schema": models[ProblemView]}}
    return {
        status: {"description": "; ".join(titles), "content": content} for status, titles in sorted(by_status.items())
    }


def _path_parameters(operation: Operation) -> list[Schema]:
    return [
        {"name": name, "in": "path", "required": True, **spec}
        for name, spec in PATH_PARAMETERS.items()
        if f"{{{name}}}" in operation.path
    ]


def _query_parameters(operation: Operation) -> list[Schema]:
    if operation.query is None:
        return []
    schema = operation.query.model_json_schema(ref_template=REFERENCE)
    return [
        {"name": name, "in": "query", "description": spec.pop("description", ""), "schema": spec}
        for name, spec in schema["properties"].items()
    ]


def _header_parameters(operation: Operation) -> list[Schema]:
    return [
        {"name": name, "in": "header", "description": description, "schema": {"type": "string"}}
        for name, description in operation.headers.items()
    ]
