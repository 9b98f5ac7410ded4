//! Schemas out of types, and the one place where the document keeps them.
//!
//! `utoipa` gives a type's schema; ranges follow from the types' widths. Two things it cannot know are added by the role a schema has:
//!
//! - **told** (answers, events): a field that may be `null` is always there. One that may be left out is never `null`
//!   (`#[schema(nullable = false)]`).
//! - **asked** (request bodies): a field that is not named is refused, so objects take no others; `null` counts as left out.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use utoipa::ToSchema;

/// A schema and those it refers to.
pub(super) struct Shape {
    schema: Value,
    parts: Vec<(String, Value)>,
}

impl Shape {
    /// A reference to the schema of `T`.
    pub(super) fn of<T: ToSchema>() -> Self {
        let name = T::name().into_owned();
        let mut parts = vec![(name.clone(), T::schema())];
        T::schemas(&mut parts);
        let json = |schema| serde_json::to_value(schema).unwrap_or_default();
        let parts = parts.into_iter().map(|(name, schema)| (name, json(schema))).collect();
        Self { schema: reference(&name), parts }
    }

    /// An array of `T`.
    pub(super) fn array<T: ToSchema>() -> Self {
        let of = Self::of::<T>();
        Self { schema: json!({"type": "array", "items": of.schema}), ..of }
    }

    /// A page of a list of `T`.
    pub(super) fn page<T: ToSchema>() -> Self {
        let of = Self::of::<T>();
        let schema = json!({
            "type": "object",
            "properties": {
                "items": {"type": "array", "items": of.schema},
                "total": {"type": "integer", "minimum": 0, "description": "Entries on all pages."},
                "page": {"type": "integer", "minimum": 1},
                "size": {"type": "integer", "minimum": 1, "maximum": 200},
            },
            "required": ["items", "total", "page", "size"],
        });
        Self { schema, ..of }
    }

    /// Bytes as they are.
    pub(super) fn bytes() -> Self {
        Self { schema: json!({"type": "string", "format": "binary"}), parts: Vec::new() }
    }

    /// An object of a format of its own.
    pub(super) fn object() -> Self {
        Self { schema: json!({"type": "object"}), parts: Vec::new() }
    }

    /// Lets it be something else as well.
    pub(super) fn either(&mut self, other: Value) {
        let schema = self.schema.take();
        self.schema = json!({"anyOf": [schema, other]});
    }
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// How a schema is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The gateway says it.
    Told,
    /// The caller says it.
    Asked,
}

/// The schemas of the document.
#[derive(Default)]
pub(super) struct Schemas {
    by_name: BTreeMap<String, (Role, Value)>,
    /// Names that two different schemas want; the tests ask that there be none.
    pub(super) conflicts: Vec<String>,
}

impl Schemas {
    /// Keeps what a shape refers to, and gives its schema.
    pub(super) fn add(&mut self, shape: &Shape, role: Role) -> Value {
        for (name, schema) in &shape.parts {
            self.put(name, schema.clone(), role);
        }
        shape.schema.clone()
    }

    /// Keeps a schema under its name.
    pub(super) fn put(&mut self, name: &str, mut schema: Value, role: Role) {
        walk(&mut schema, role);
        let kept = self.by_name.entry(name.to_owned()).or_insert_with(|| (role, schema.clone()));
        if kept.1 != schema {
            self.conflicts.push(name.to_owned());
        }
    }

    pub(super) fn into_json(self) -> Value {
        let schemas = self.by_name.into_iter().map(|(name, (_, schema))| (name, schema));
        schemas.collect::<Map<_, _>>().into()
    }
}

/// Goes through a schema and all inside it.
fn walk(schema: &mut Value, role: Role) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(|item| walk(item, role)),
        Value::Object(fields) => {
            bound(fields);
            if fields.get("default").is_some_and(Value::is_null) {
                fields.remove("default");
            }
            if let Some(Value::String(text)) = fields.get_mut("description")
                && !text.contains("\n|")
            {
                *text = plain(text);
            }
            if let Some(Value::Object(properties)) = fields.get_mut("properties") {
                let nullable = properties.iter().filter(|(_, property)| takes_null(property));
                let nullable: Vec<Value> = nullable.map(|(name, _)| name.as_str().into()).collect();
                // A property may have the name of a keyword, so it is gone into by itself.
                properties.values_mut().for_each(|property| walk(property, role));
                match role {
                    Role::Told => require(fields, nullable),
                    Role::Asked => drop(fields.insert("additionalProperties".into(), false.into())),
                }
            }
            let data = ["properties", "examples", "example", "default", "enum", "const"];
            let inner = fields.iter_mut().filter(|(name, _)| !data.contains(&name.as_str()));
            inner.for_each(|(_, inner)| walk(inner, role));
        }
        _ => {}
    }
}

/// Says the range of a type that `utoipa` names by its width, which most clients do not know.
fn bound(fields: &mut Map<String, Value>) {
    let (max, wide) = match fields.get("format").and_then(Value::as_str) {
        Some("uint8") => (Some(u32::from(u8::MAX)), false),
        Some("uint16") => (Some(u32::from(u16::MAX)), false),
        Some("uint32") => (Some(u32::MAX), true),
        Some("uint64") => (None, true),
        _ => return,
    };
    fields.remove("format");
    if wide {
        fields.insert("format".into(), "int64".into());
    }
    fields.entry("minimum").or_insert_with(|| 0.into());
    if let Some(max) = max {
        fields.entry("maximum").or_insert_with(|| max.into());
    }
}

/// A comment as a text: links of the documentation lead nowhere here, and lines break where the page is.
fn plain(text: &str) -> String {
    let paragraphs = text.split("\n\n").map(|paragraph| paragraph.replace('\n', " "));
    let text = paragraphs.collect::<Vec<_>>().join("\n\n");
    text.replace("[`", "`").replace("`]", "`")
}

fn require(fields: &mut Map<String, Value>, names: Vec<Value>) {
    let Value::Array(required) = fields.entry("required").or_insert_with(|| json!([])) else { return };
    for name in names {
        if !required.contains(&name) {
            required.push(name);
        }
    }
    required.sort_by(|left, right| left.as_str().cmp(&right.as_str()));
    if required.is_empty() {
        fields.remove("required");
    }
}

/// Whether a schema takes `null`.
fn takes_null(schema: &Value) -> bool {
    let has_null = |value: &Value| match value {
        Value::String(word) => word == "null",
        Value::Array(words) => words.iter().any(|word| word == "null"),
        _ => false,
    };
    let any_of = ["oneOf", "anyOf"].iter().filter_map(|word| schema.get(word)?.as_array());
    match schema.get("type") {
        Some(kind) => has_null(kind),
        None if schema.get("$ref").is_some() || schema.get("allOf").is_some() => false,
        None => {
            let mut any_of = any_of.peekable();
            any_of.peek().is_none() || any_of.flatten().any(takes_null)
        }
    }
}
