//! Successful answers.

use axum::http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use super::service::{Payload, payload};

/// A value as JSON that no cache keeps.
pub(super) fn json_answer(value: &impl Serialize) -> Response<Payload> {
    /// Holds a token or a ticket without growing.
    const USUAL: usize = 768;
    let mut body = Vec::with_capacity(USUAL);
    serde_json::to_writer(&mut body, value)
        .expect("the answers have string keys, and a vector takes every byte");
    json_body(body)
}

/// A text that is JSON.
pub(super) fn json_body(body: Vec<u8>) -> Response<Payload> {
    let mut response = Response::new(payload(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Nothing to say: 204.
pub(super) fn nothing() -> Response<Payload> {
    let mut response = Response::new(payload(""));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
