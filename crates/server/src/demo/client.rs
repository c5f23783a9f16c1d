//! A client of JSON over plain HTTP, for what runs on loopback.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

use crate::cli::Failure;

/// Longer than the server waits for WeChat.
const PATIENCE: Duration = Duration::from_secs(40);

/// A client. Cloning gives another handle to the same connections.
#[derive(Clone)]
pub(crate) struct Client(Http<HttpConnector, Full<Bytes>>);

/// An answer.
pub(crate) struct Answer {
    /// The HTTP status.
    pub(crate) status: u16,
    /// The body; null when it is no JSON.
    pub(crate) body: Value,
}

impl Answer {
    /// A string of the body, empty when it is not there.
    pub(crate) fn text(&self, field: &str) -> &str {
        self.body[field].as_str().unwrap_or_default()
    }

    /// A number of the body, 0 when it is not there.
    pub(crate) fn number(&self, field: &str) -> i64 {
        self.body[field].as_i64().unwrap_or_default()
    }
}

impl Client {
    pub(crate) fn new() -> Self {
        Self(Http::builder(TokioExecutor::new()).build_http())
    }

    /// Reads something, with a client key where one is needed.
    pub(crate) async fn get(&self, url: &str, key: Option<&str>) -> Result<Answer, Failure> {
        self.send(Method::GET, url, key, None).await
    }

    /// Posts something.
    pub(crate) async fn post(
        &self,
        url: &str,
        key: Option<&str>,
        body: &Value,
    ) -> Result<Answer, Failure> {
        self.send(Method::POST, url, key, Some(body)).await
    }

    /// Opens a page as the browser in a user's WeChat does, and answers where it is sent on to.
    pub(crate) async fn browse(&self, url: &str, user: &str) -> Result<String, Failure> {
        let failed = |what: &str| Failure::new(format!("a browser {what}"));
        let request = Request::builder()
            .uri(url)
            .header("user-agent", "MicroMessenger")
            .header("x-sim-openid", user)
            .body(Full::default())
            .map_err(|_| failed("has no such address to go to"))?;
        let page = tokio::time::timeout(PATIENCE, self.0.request(request));
        let page = page.await.map_err(|_| failed("waits too long"))?;
        let page = page.map_err(|_| failed("was not answered"))?;
        let location = page.headers().get("location").and_then(|to| to.to_str().ok());
        location.map(str::to_owned).ok_or_else(|| failed("was not sent on"))
    }

    async fn send(
        &self,
        method: Method,
        url: &str,
        key: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Answer, Failure> {
        // Queries carry secrets, so that no message may quote the URL.
        let failed = |what: &str| Failure::new(format!("a call on loopback {what}"));
        let mut request = Request::builder().method(method).uri(url);
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = request.body(Full::new(body)).map_err(|_| failed("cannot be made"))?;
        let exchange = async {
            let response = self.0.request(request).await.map_err(|_| failed("was not answered"))?;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await;
            let body = body.map_err(|_| failed("broke off"))?.to_bytes();
            Ok(Answer { status, body: serde_json::from_slice(&body).unwrap_or_default() })
        };
        tokio::time::timeout(PATIENCE, exchange).await.map_err(|_| failed("takes too long"))?
    }
}
