//! What is about tokens, tickets and the app's secret.

use std::sync::Arc;

use axum::http::{HeaderValue, Response, header};
use broker::{
    AppEntry,
    app::AppKind,
    key::{ClientKey, Permission},
};
use serde_json::{Value, json};
use wechat::TicketKind;

use super::{Answer, Asked, CallQuery, Family, LOOKED_AT, Refusal, params::Params};
use crate::http::{
    carry::Unanswered,
    service::{Payload, payload},
    upload::Arriving,
};

/// A call that proves itself with a client key in the place of the app's secret.
pub(super) struct Proven {
    pub(super) key: Arc<ClientKey>,
    pub(super) entry: Arc<AppEntry>,
}

impl Asked<'_> {
    /// Answers a pass; to a key that may see it, the token.
    pub(super) async fn token(&mut self, body: Arriving) -> Answer {
        let body = self.app.uploads.whole(body, LOOKED_AT).await;
        let body = body.map_err(|fault| Refusal::busy(fault.to_string()))?;
        let params = Params::parse(self.head.uri.query(), &body);
        let params = params.map_err(Refusal::malformed_for_a_token)?;
        let Proven { key, entry } = self.proven(&params, "secret")?;
        if params.get("grant_type") != Some("client_credential") {
            return Err(Refusal::grant_type("grant_type is client_credential"));
        }
        if entry.app().kind == AppKind::Website {
            return Err(Refusal::appid());
        }
        let needs = if key.rights.reveal { Permission::Token } else { self.needs };
        self.holds(&key, needs)?;
        if params.is_true("force_refresh") {
            self.app.broker.suspect(&entry, &key).await;
        }
        let (token, expires_in) = if key.rights.reveal {
            let view = self.app.broker.token_for_reveal(&entry, &key).await?;
            self.app.broker.recheck(&key, &entry)?;
            (view.token.expose().to_owned(), view.expires_in.as_secs())
        } else {
            let pass = self.app.broker.issue_pass(&entry, &key);
            (pass.expose().to_owned(), pass.expires_in().as_secs())
        };
        Ok(json_answer(Family::Cgi, &json!({"access_token": token, "expires_in": expires_in})))
    }

    /// Answers the broker's ticket, to a pass.
    pub(super) async fn ticket(&mut self, body: Arriving) -> Answer {
        drop(body);
        let query = CallQuery::parse(self.head.uri.query())?;
        let token = query.token.as_deref().filter(|token| !token.is_empty());
        let passed = self.passed(token.ok_or_else(Refusal::no_token)?).await?;
        passed.key.rights.may_call(self.path).map_err(|why| Refusal::not_allowed(&why))?;
        passed.key.admit_call(&passed.entry)?;
        let params = Params::parse(Some(&query.rest), &bytes::Bytes::new())?;
        let kind: TicketKind = match params.get("type").map(str::parse) {
            Some(Ok(kind)) => kind,
            Some(Err(_)) | None => return Err(Refusal::args("type is jsapi or wx_card")),
        };
        let view = self.app.broker.ticket(&passed.entry, kind).await?;
        self.app.broker.recheck(&passed.key, &passed.entry).map_err(Unanswered::from)?;
        let answer = json!({
            "errcode": 0,
            "errmsg": "ok",
            "ticket": view.ticket.expose(),
            "expires_in": view.expires_in.as_secs(),
        });
        Ok(json_answer(Family::Cgi, &answer))
    }

    /// Sets the day's counters of the app to zero.
    pub(super) async fn clear_quota(&mut self, body: Arriving) -> Answer {
        let params = self.params(body).await?;
        let Proven { key, entry } = self.proven(&params, "appsecret")?;
        self.holds(&key, self.needs)?;
        self.reaches_path(&key)?;
        key.admit_call(&entry)?;
        let app = Arc::clone(&entry.app());
        self.app.broker.wechat().clear_quota_v2(&app.id, &app.secret).await?;
        Ok(json_answer(Family::Cgi, &json!({"errcode": 0, "errmsg": "ok"})))
    }

    /// Query and body of a call that is answered here.
    pub(super) async fn params(&self, body: Arriving) -> Result<Params, Refusal> {
        let body = self.app.uploads.whole(body, LOOKED_AT).await?;
        Ok(Params::parse(self.head.uri.query(), &body)?)
    }

    /// Who calls, by the client key in the parameter `secret`, and for which app.
    pub(super) fn proven(&mut self, params: &Params, secret: &str) -> Result<Proven, Refusal> {
        let appid = params.get("appid").ok_or_else(Refusal::no_appid)?;
        let secret = params.get(secret).ok_or_else(Refusal::no_secret)?;
        let key = self.app.broker.authenticate(secret)?;
        self.who.key = Some(Arc::clone(&key));
        let entry = self.app.broker.app(appid).filter(|entry| {
            let id = &entry.app().id;
            id.as_str() == appid && key.reaches(id)
        });
        let entry = entry.ok_or_else(Refusal::appid)?;
        self.who.entry = Some(Arc::clone(&entry));
        Ok(Proven { key, entry })
    }

    /// Whether the key holds a permission; it was sent as a secret, and is refused as one.
    pub(super) fn holds(&self, key: &ClientKey, permission: Permission) -> Result<(), Refusal> {
        if key.may(permission) {
            return Ok(());
        }
        let permission = permission.as_str();
        Err(Refusal::secret(format!("the client key lacks the permission `{permission}`")))
    }

    /// Whether the key is for the path of the call.
    pub(super) fn reaches_path(&self, key: &ClientKey) -> Result<(), Refusal> {
        key.rights.reaches_path(self.path).map_err(|why| Refusal::not_allowed(&why))
    }
}

/// An answer of ours, under the name that WeChat gives to its own.
pub(super) fn json_answer(family: Family, answer: &Value) -> Response<Payload> {
    let mut response = Response::new(payload(answer.to_string()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, family.content_type());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
