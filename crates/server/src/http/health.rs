//! Whether the server lives and can serve.

use axum::http::Response;
use broker::store::StoreError;
use serde_json::json;

use super::{
    App,
    answer::json_answer,
    call::Answer,
    problem::{Problem, ProblemType},
    service::Payload,
};

/// The process lives: it answers.
pub(super) fn health() -> Response<Payload> {
    json_answer(&json!({ "status": "ok" }))
}

/// The server can answer callers and is not about to stop. While the store is away it serves what it
/// has, so it stays ready: else a load balancer would take away all replicas at once.
pub(super) fn ready(app: &App) -> Answer {
    if app.draining.is_cancelled() {
        return Err(Problem::new(ProblemType::Draining, "The server is about to stop."));
    }
    if !app.broker.is_ready() {
        let why = "it has been away for too long, so no client key is taken for good";
        return Err(StoreError::Unavailable(why.to_owned()).into());
    }
    let word = |reached| if reached { "reachable" } else { "unreachable" };
    Ok(json_answer(&json!({
        "status": "ready",
        "store": word(app.broker.reaches_store()),
        "shared": word(app.broker.reaches_shared()),
    })))
}
