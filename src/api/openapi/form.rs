//! Forms of values in paths and queries.

use std::ops::RangeInclusive;

use serde_json::{Value, json};
use utoipa::ToSchema;

use super::schema::{Role, Schemas, Shape};

/// What a value in a path or a query must be.
pub(super) struct Form(Inner);

enum Inner {
    Shape(Shape),
    Schema(Value),
}

impl Form {
    /// A type with a schema of its own, such as an id or the words of a state.
    pub(super) fn of<T: ToSchema>() -> Self {
        Self(Inner::Shape(Shape::of::<T>()))
    }

    /// A whole number in a range.
    pub(super) fn number(range: RangeInclusive<i64>) -> Self {
        let (min, max) = (*range.start(), *range.end());
        let schema = if max == i64::MAX {
            json!({"type": "integer", "format": "int64", "minimum": min})
        } else {
            json!({"type": "integer", "minimum": min, "maximum": max})
        };
        Self(Inner::Schema(schema))
    }

    /// `true` or `false`.
    pub(super) fn flag() -> Self {
        Self(Inner::Schema(json!({"type": "boolean"})))
    }

    /// A text of a length in characters.
    pub(super) fn text(length: RangeInclusive<usize>) -> Self {
        Self(Inner::Schema(json!({"type": "string", "minLength": length.start(), "maxLength": length.end()})))
    }

    /// A text of a pattern.
    pub(super) fn pattern(pattern: &str) -> Self {
        Self(Inner::Schema(json!({"type": "string", "pattern": pattern})))
    }

    /// One of a few words.
    pub(super) fn words(words: &[&str]) -> Self {
        Self(Inner::Schema(json!({"type": "string", "enum": words})))
    }

    /// The words of a state, or their numbers from 0.
    pub(super) fn state<T: ToSchema>(max: u8) -> Self {
        let mut shape = Shape::of::<T>();
        shape.either(json!({"type": "integer", "minimum": 0, "maximum": max}));
        Self(Inner::Shape(shape))
    }

    /// A time of RFC 3339 with a zone.
    pub(super) fn time() -> Self {
        Self(Inner::Schema(json!({"type": "string", "format": "date-time"})))
    }

    /// The name of a key, an endpoint or an instance.
    pub(super) fn name() -> Self {
        let pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]+$";
        Self(Inner::Schema(json!({"type": "string", "minLength": 1, "maxLength": 128, "pattern": pattern})))
    }

    pub(super) fn schema(&self, schemas: &mut Schemas) -> Value {
        match &self.0 {
            Inner::Shape(shape) => schemas.add(shape, Role::Asked),
            Inner::Schema(schema) => schema.clone(),
        }
    }
}
