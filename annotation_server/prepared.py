"""Queries whose SQL Django writes once: for what every answer of an annotator asks, where writing it was the cost.

A query is declared as a queryset with `Param` in the place of values; the first use on a database compiles it, later
ones bind values to the same SQL. Rows come out as of the queryset itself: models with what `select_related` names, or
the tuples of `values_list`. Not here: caching of rows, there is none; queries that are asked now and then.
"""

from __future__ import annotations

import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, Generic, TypeVar

from django.db import connection, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.db.models import Expression, Model, QuerySet
from django.db.models.constants import OnConflict
from django.db.models.query import FlatValuesListIterable, ModelIterable, get_related_populators
from django.db.models.sql import InsertQuery, UpdateQuery
from django.db.models.sql.compiler import SQLCompiler

Row = TypeVar("Row")

_KEPT_LENGTH = 512
"""Longest sequence whose SQL is kept: every power of two has its own."""


class Param(Expression):
    """A value that is given when the query is asked; of a sequence, the value at `index`."""

    def __init__(self, name: str, index: int | None = None) -> None:
        super().__init__()
        self.name, self.index = name, index

    def as_sql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper) -> tuple[str, tuple[Any, ...]]:
        """A placeholder, with itself as what stands there until values are bound."""
        return "%s", (self,)


Params = Callable[[str], Any]
"""Gives the `Param` of a name, or the list of them where the value is a sequence. For ``task__id__in=p("tasks")``."""


class _Prepared(ABC, Generic[Row]):
    """SQL per database and per lengths of the sequences among the values."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], _Compiled] = {}

    def plan(self, **values: object) -> str:
        """What the database means to do for these values, in its own words."""
        compiled = self._compiled(values)
        with _cursor() as cursor:
            cursor.execute(f"{connection.ops.explain_query_prefix()} {compiled.sql}", compiled.bind(values))
            return "\n".join(str(row[-1]) for row in cursor.fetchall())

    def _compiled(self, values: Mapping[str, object]) -> _Compiled:
        lengths = {name: _rounded(len(value)) for name, value in values.items() if isinstance(value, (list, tuple))}
        key = (connection.vendor, *lengths.items())
        if (found := self._kept.get(key)) is not None:
            return found

        def params(name: str) -> Param | list[Param]:
            if name not in values:
                raise TypeError(f"the query needs a value {name!r}")
            return [Param(name, index) for index in range(lengths[name])] if name in lengths else Param(name)

        made = self._compile(params)
        if all(length <= _KEPT_LENGTH for length in lengths.values()):
            self._kept[key] = made
        return made

    @abstractmethod
    def _compile(self, params: Params) -> _Compiled:
        """Have Django write the SQL, with `params` in the place of values."""


class PreparedQuery(_Prepared[Row]):
    """A SELECT. `build` makes the queryset from `p("name")`; ask it with a value for each name."""

    def __init__(self, build: Callable[[Params], QuerySet[Any, Row]]) -> None:
        super().__init__()
        self._build = build

    def __call__(self, **values: object) -> list[Row]:
        """All rows. Values are what the database column takes: ids rather than models, none of them None."""
        if () in values.values() or [] in values.values():
            return []  # in no set is nothing; SQL has no such set
        return self._compiled(values).rows(values)

    def first(self, **values: object) -> Row | None:
        """The first row, or None. The query itself should not yield many more."""
        return next(iter(self(**values)), None)

    def _compile(self, params: Params) -> _Compiled:
        queryset = self._build(params)
        compiler = queryset.query.get_compiler(using=queryset.db)
        sql, template = compiler.as_sql()
        return _Compiled(sql, template, compiler, queryset)


class PreparedUpdate(_Prepared[int]):
    """An UPDATE. `build` gives the rows and the new values, either with `p("name")` in them."""

    def __init__(self, build: Callable[[Params], tuple[QuerySet[Any, Any], Mapping[str, Any]]]) -> None:
        super().__init__()
        self._build = build

    def __call__(self, **values: object) -> int:
        """How many rows it changed."""
        return self._compiled(values).execute(values)

    def many(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Once for each of the rows, sent together: far cheaper than `bulk_update`, whose SQL grows with the rows."""
        if rows:
            self._compiled(rows[0]).execute_many(rows)

    def _compile(self, params: Params) -> _Compiled:
        queryset, changes = self._build(params)
        query = queryset.query.chain(UpdateQuery)
        query.add_update_values(changes)  # type: ignore[attr-defined]
        query.annotations = {}
        query.clear_ordering(force=True)
        compiler = query.get_compiler(using=queryset.db)
        sql, template = compiler.as_sql()
        return _Compiled(sql, template, compiler, queryset)


class PreparedInsert(_Prepared[None]):
    """An INSERT of rows that nobody asks the new keys of. With `ignore_conflicts`, rows that are there stay."""

    def __init__(self, model: type[Model], *names: str, ignore_conflicts: bool = False) -> None:
        super().__init__()
        self._model, self._names = model, names
        self._on_conflict = OnConflict.IGNORE if ignore_conflicts else None

    def many(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Once for each of the rows, which have the columns by name; sent together."""
        if rows:
            self._compiled(rows[0]).execute_many(rows)

    def _compile(self, params: Params) -> _Compiled:
        fields = [field for field in self._model._meta.concrete_fields if field.name in self._names]
        row: Any = SimpleNamespace(**{field.attname: params(field.attname) for field in fields})
        query = InsertQuery(self._model, on_conflict=self._on_conflict)
        query.insert_values(fields, [row], raw=True)
        queryset = self._model._default_manager.all()
        compiler = query.get_compiler(using=queryset.db)
        [(sql, template)] = compiler.as_sql()
        return _Compiled(sql, template, compiler, queryset)


class _Compiled:
    """The SQL of a query, with the names of its values, and how its rows become what the queryset yields."""

    def __init__(self, sql: str, template: Sequence[Any], compiler: SQLCompiler, queryset: QuerySet[Any, Any]) -> None:
        self.sql, self._params = _with_constants(sql, template)
        if isinstance(compiler.query, UpdateQuery | InsertQuery):
            return
        columns = [column for column, _, _ in compiler.select]
        self._converters = [
            (place, function, expression)
            for place, (functions, expression) in compiler.get_converters(columns).items()
            for function in functions
        ]
        self._flat = queryset._iterable_class is FlatValuesListIterable
        self._of_model = queryset._iterable_class is ModelIterable
        if not self._of_model:
            return
        select, info = compiler.select, compiler.klass_info
        self._model: type[Model] = info["model"]
        self._start, self._end = info["select_fields"][0], info["select_fields"][-1] + 1
        self._names = [column[0].target.attname for column in select[self._start : self._end]]
        self._related = get_related_populators(info, select, queryset.db)  # type: ignore[call-arg]  # fetch_mode is of Django 6.1
        self._annotations = list((compiler.annotation_col_map or {}).items())

    def execute(self, values: Mapping[str, object]) -> int:
        with transaction.mark_for_rollback_on_error("default"), _cursor() as cursor:
            cursor.execute(self.sql, self.bind(values))
            return int(cursor.rowcount)

    def execute_many(self, rows: Sequence[Mapping[str, object]]) -> None:
        with transaction.mark_for_rollback_on_error("default"), _cursor() as cursor:
            cursor.executemany(self.sql, [self.bind(values) for values in rows])

    def rows(self, values: Mapping[str, object]) -> list[Any]:
        with _cursor() as cursor:
            cursor.execute(self.sql, self.bind(values))
            rows = [list(row) for row in cursor.fetchall()]
        for row in rows:
            for place, convert, expression in self._converters:
                row[place] = convert(row[place], expression, connection)
        if self._of_model:
            return [self._instance(row) for row in rows]
        return [row[0] for row in rows] if self._flat else [tuple(row) for row in rows]

    def _instance(self, row: list[Any]) -> Model:
        made = self._model.from_db("default", self._names, row[self._start : self._end])
        for populator in self._related:
            populator.populate(row, made)
        for name, place in self._annotations:
            setattr(made, name, row[place])
        return made

    def bind(self, values: Mapping[str, object]) -> list[Any]:
        return [_for_database(_value(param, values)) for param in self._params]


def _with_constants(sql: str, template: Sequence[Any]) -> tuple[str, list[Param]]:
    """The SQL with everything but the Params written into it: a partial index is used only where its condition is seen
    when the statement is planned, which is before there are values."""
    parts = re.split("(%%|%s)", sql)
    rest = iter(template)
    params = []
    for place, part in enumerate(parts):
        if part == "%s":
            value = next(rest)
            if isinstance(value, Param):
                params.append(value)
            else:
                parts[place] = _literal(value)
    return "".join(parts), params


def _literal(value: object) -> str:
    """A constant of our own code in SQL."""
    if isinstance(value, bool):
        return ("TRUE" if value else "FALSE") if connection.vendor == "postgresql" else str(int(value))
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return "'" + value.replace("'", "''").replace("%", "%%") + "'"
    raise TypeError(f"{value!r} cannot stand in a prepared query: make it a Param")


@contextmanager
def _cursor() -> Iterator[CursorWrapper]:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            from django.db.backends.postgresql.base import ServerBindingCursor  # needs psycopg

            # Django's own writes values into the SQL, so that every statement is a new one to be planned.
            cursor.cursor.close()
            cursor.cursor = ServerBindingCursor(connection.connection)  # type: ignore[call-arg]
        yield cursor


def _value(param: Param, values: Mapping[str, Any]) -> Any:
    value = values[param.name]
    return value if param.index is None else value[min(param.index, len(value) - 1)]


def _rounded(length: int) -> int:
    """Up to a power of two, where SQL of that length is kept: the last value then stands there several times, which
    changes no set."""
    return 1 << (length - 1).bit_length() if length <= _KEPT_LENGTH else length


def _for_database(value: Any) -> Any:
    """What Django's fields make of the kinds of value that stand in conditions."""
    if isinstance(value, datetime):
        return connection.ops.adapt_datetimefield_value(value)
    if isinstance(value, Decimal):
        return f"{value:f}"  # as Django's fields do; SQLite knows no decimals
    if isinstance(value, uuid.UUID) and not connection.features.has_native_uuid_field:
        return value.hex
    return value
