"""The OpenAPI 3.1 document, built from the operations, the pydantic models and the catalog of jobs."""

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
from cplane.web.problems import MEDIA_TYPE, TOO_SLOW, UNAUTHORIZED, ProblemType, ProblemView
from cplane.web.routing import Answer, Operation

if TYPE_CHECKING:
    from pydantic._internal._dataclasses import PydanticDataclass  # models_json_schema takes these too

Schema = dict[str, Any]
Models = Mapping[type[BaseModel], Schema]
"""Model → the schema to use for it: a reference into the components."""

REFERENCE = "#/components/schemas/{model}"

ABOUT = """Submit jobs, follow them, fetch what they leave.

Times are ISO 8601 in UTC. Errors are `application/problem+json` (RFC 9457). A POST answers 202 for a job that is not final yet,
200 with the final record."""

PARAMETERS = {
    "id": {"type": "string", "format": "uuid"},
    "name": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,200}$"},
    "session": {"type": "string", "pattern": f"^{SESSION_NAME.pattern}$"},
}


class _Generator(GenerateJsonSchema):
    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012  pydantic declares it this way


def document(jobs: Sequence[AnyJob], *, root_path: str = "", secured: bool = False) -> Schema:
    """The OpenAPI document of a server that knows these jobs; `secured`: it asks for a key."""
    models, schemas = _schemas(jobs)
    schemas |= _submissions(jobs, models)
    spec: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": "cplane",
            "version": __version__,
            "description": ABOUT,
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
    answers: list[type[BaseModel]] = [
        answer.model for operation in OPERATIONS for answer in operation.answers.values() if answer.model is not None
    ]
    bodies = [operation.body for operation in OPERATIONS if operation.body is not None]
    inputs: list[type[BaseModel]] = [*bodies, *(job.signature.arguments for job in jobs if _describable(job))]
    wanted = [*_in_mode([*answers, ProblemView], "serialization"), *_in_mode(inputs, "validation")]
    found, definitions = models_json_schema(wanted, ref_template=REFERENCE, schema_generator=_Generator)
    schemas: Mapping[Any, Schema] = {model: schema for (model, _), schema in found.items()}
    return schemas, definitions["$defs"]


def _in_mode(
    models: Iterable[type[BaseModel]], mode: JsonSchemaMode
) -> list[tuple[type[BaseModel] | type["PydanticDataclass"], JsonSchemaMode]]:
    return [(model, mode) for model in dict.fromkeys(models)]


def _describable(job: AnyJob) -> bool:
    try:
        job.schema()
    except PydanticUserError:
        return False
    return True


# submissions: one schema for each job, told apart by "job"


def _submissions(jobs: Sequence[AnyJob], models: Models) -> Schema:
    if not jobs:
        return {"Submission": models[SubmitBody]}
    each = {_component(job): _submission(job, models) for job in jobs}
    references = {job.name: f"#/components/schemas/{_component(job)}" for job in jobs}
    return each | {
        "Submission": {
            "description": "A job with its arguments",
            "oneOf": [{"$ref": reference} for reference in references.values()],
            "discriminator": {"propertyName": "job", "mapping": references},
        }
    }


def _component(job: AnyJob) -> str:
    return f"job.{job.name.replace(':', '..')}"  # a component's name has no colon


def _submission(job: AnyJob, models: Models) -> Schema:
    arguments = job.signature.arguments
    required = any(field.is_required() for field in arguments.model_fields.values())
    options = SubmitBody.model_json_schema(ref_template=REFERENCE)["properties"]
    return {
        "title": job.name,
        "description": describe(job),
        "type": "object",
        "properties": {
            "job": {"type": "string", "enum": [job.name]},  # not const: of that, tools make no example
            "args": models.get(arguments, {"type": "object"}),
            **{name: options[name] for name in ("queue", "priority", "delay", "at")},
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
    closed = secured and operation.path.startswith("/api/")
    kinds = [*operation.problems, TOO_SLOW, *([UNAUTHORIZED] if closed else [])]
    responses = {str(status): _response(answer, models) for status, answer in operation.answers.items()}
    described: Schema = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": responses
        | {status: problem for status, problem in _problems(kinds, models).items() if status not in responses},
    }
    if parameters := [*_path_parameters(operation), *_query_parameters(operation), *_header_parameters(operation)]:
        described["parameters"] = parameters
    if operation.body is not None:
        schema = {"$ref": "#/components/schemas/Submission"} if operation.body is SubmitBody else models[operation.body]
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if closed:
        described["security"] = [{"key": []}]
    return described


def _response(answer: Answer, models: Models) -> Schema:
    response: Schema = {"description": answer.about}
    if answer.media_type:
        schema = {} if answer.model is None else models[answer.model]
        response["content"] = {answer.media_type: {"schema": schema}}
    if answer.headers:
        response["headers"] = {
            name: {"description": about, "schema": {"type": "string"}} for name, about in answer.headers.items()
        }
    return response


def _problems(kinds: Iterable[ProblemType], models: Models) -> Schema:
    by_status: dict[str, list[str]] = {}
    for kind in kinds:
        by_status.setdefault(str(kind.status), []).append(kind.title)
    content = {MEDIA_TYPE: {"schema": models[ProblemView]}}
    return {
        status: {"description": "; ".join(titles), "content": content} for status, titles in sorted(by_status.items())
    }


def _path_parameters(operation: Operation) -> list[Schema]:
    return [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name, schema in PARAMETERS.items()
        if f"{{{name}}}" in operation.path
    ]


def _query_parameters(operation: Operation) -> list[Schema]:
    if operation.query is None:
        return []
    schema = operation.query.model_json_schema(ref_template=REFERENCE)
    return [
        {"name": name, "in": "query", "description": described.pop("description", ""), "schema": described}
        for name, described in schema["properties"].items()
    ]


def _header_parameters(operation: Operation) -> list[Schema]:
    return [
        {"name": name, "in": "header", "description": about, "schema": {"type": "string"}}
        for name, about in operation.headers.items()
    ]
