//! Whether the server lives and can serve.

use std::time::Duration;

use axum::http::Response;
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

/// The store answers, and the server is not about to stop.
pub(super) async fn ready(app: &App) -> Answer {
    /// Whoever asks this gives up soon.
    const PATIENCE: Duration = Duration::from_secs(3);
    if app.draining.is_cancelled() {
        return Err(Problem::new(ProblemType::Draining, "The server is about to stop."));
    }
    match tokio::time::timeout(PATIENCE, app.broker.ready()).await {
        Ok(Ok(())) => Ok(json_answer(&json!({ "status": "ready" }))),
        Ok(Err(err)) => Err(err.into()),
        Err(_) => {
            let detail = "The store does not answer in time.";
            Err(Problem::new(ProblemType::StoreUnavailable, detail))
        }
    }
}
