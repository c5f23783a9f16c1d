//! The description of the API, held against what the server answers.

use serde_json::{Value, json};
use server::http::{ROUTES, openapi};

use crate::{
    harness::{APP, OPENID, World},
    policy::{sample, success},
};

#[tokio::test(start_paused = true)]
async fn real_answers_have_the_described_shape() {
    let world = World::new().await;
    let document: Value = serde_json::from_str(&openapi()).unwrap();
    for route in &ROUTES {
        let method = route.method.as_str().to_lowercase();
        let (path, body) = sample(&world, route).await;
        let answer = world.ask(route.method.as_str(), &path, Some(&world.key), body.as_deref());
        let answer = answer.await;
        assert_eq!(answer.status, success(route), "{path}: {answer:?}");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        let described = &document["paths"][route.path][&method]["responses"];
        let described = &described[answer.status.to_string()];
        assert!(described.is_object(), "{path}");
        if answer.status == 204 {
            continue;
        }
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let described = &described["content"];
        let schema = &described["application/json"]["schema"];
        check(&document, schema, &answer.json(), &path);
    }
}

#[tokio::test(start_paused = true)]
async fn the_document_is_served() {
    let world = World::new().await;
    let served = world.ask("GET", "/v1/openapi.json", None, None).await;
    assert_eq!(String::from_utf8(served.body).unwrap(), openapi());
}

#[test]
fn examples_fit_their_schemas() {
    let document: Value = serde_json::from_str(&openapi()).unwrap();
    let mut checked = 0;
    let mut look = vec![&document];
    while let Some(value) = look.pop() {
        if let (Some(schema), Some(example)) = (value.get("schema"), value.get("example")) {
            check(&document, schema, example, "example");
            checked += 1;
        }
        match value {
            Value::Object(fields) => look.extend(fields.values()),
            Value::Array(items) => look.extend(items),
            _ => {}
        }
    }
    assert!(checked > 20, "{checked}");
    check_schema("Problem", &document["components"]["schemas"]["Problem"]["example"]);
}

/// Checks a value against a schema of the document.
#[track_caller]
pub(crate) fn check_schema(name: &str, value: &Value) {
    let document: Value = serde_json::from_str(&openapi()).unwrap();
    let schema = json!({ "$ref": format!("#/components/schemas/{name}") });
    check(&document, &schema, value, name);
}

/// As much of JSON Schema as the document uses.
#[track_caller]
fn check(document: &Value, schema: &Value, value: &Value, place: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(&reference[1..]).unwrap();
        return check(document, target, value, place);
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(some) => some.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let actual = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    assert!(types.is_empty() || types.contains(&actual), "{place}: {value} is no {types:?}");
    if let Some(choices) = schema["enum"].as_array() {
        assert!(choices.contains(value), "{place}: {value}");
    }
    if let (Some(properties), Value::Object(fields)) = (schema["properties"].as_object(), value) {
        for (name, value) in fields {
            let schema = properties.get(name);
            let schema = schema.unwrap_or_else(|| panic!("{place}: `{name}` is not described"));
            check(document, schema, value, &format!("{place}.{name}"));
        }
        for name in schema["required"].as_array().unwrap() {
            assert!(fields.contains_key(name.as_str().unwrap()), "{place}: no {name}");
        }
    }
    if let (Some(items), Value::Array(values)) = (schema.get("items"), value) {
        for value in values {
            check(document, items, value, &format!("{place}[]"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_sample_paths_name_the_app_and_the_user() {
    let world = World::new().await;
    let mut paths = Vec::new();
    for route in &ROUTES {
        paths.push(sample(&world, route).await.0);
    }
    assert!(paths.iter().any(|path| path == &format!("/v1/apps/{APP}/users/{OPENID}")));
    assert!(paths.iter().all(|path| !path.contains('{')));
}
