//! What is about users who authorised. Their web and refresh tokens are given out wrapped, bound to
//! the client key, and unwrapped when they come back.

use std::sync::Arc;

use broker::{AppEntry, key::ClientKey};
use serde_json::{Map, Value, json};
use wechat::{AuthCode, Forward, IssuedGrant};

use super::{
    Answer, Asked, CallQuery, Family, Refusal,
    issue::{Proven, json_answer},
};
use crate::http::{
    carry::{Unanswered, Who, counted, forward, passed_on, upward, with_token},
    upload::Arriving,
};

impl Asked<'_> {
    /// Exchanges the code of a web authorisation.
    pub(super) async fn exchange(&mut self, body: Arriving) -> Answer {
        let params = self.params(body).await?;
        let Proven { key, entry } = self.proven(&params, "secret")?;
        self.holds(&key, self.needs)?;
        self.reaches_path(&key)?;
        let code = params.get("code").ok_or_else(Refusal::no_code)?;
        if params.get("grant_type") != Some("authorization_code") {
            return Err(Refusal::grant_type("grant_type is authorization_code"));
        }
        key.admit_call(&entry)?;
        let code = AuthCode::new(code.to_owned());
        let issued = self.app.broker.exchange_for_client(&entry, &key, &code).await?;
        self.grant(&key, &entry, &issued)
    }

    /// Renews a web token by its refresh token.
    pub(super) async fn renew(&mut self, body: Arriving) -> Answer {
        let params = self.params(body).await?;
        let appid = params.get("appid").ok_or_else(Refusal::no_appid)?;
        if params.get("grant_type") != Some("refresh_token") {
            return Err(Refusal::grant_type("grant_type is refresh_token"));
        }
        let token = params.get("refresh_token").ok_or_else(Refusal::no_refresh_token)?;
        let unwrapped = self.app.broker.unwrap_refresh_token(token);
        let unwrapped = unwrapped.map_err(Refusal::web_refresh_token)?;
        let (key, entry) = (unwrapped.key, unwrapped.entry);
        self.who = Who::of(&key, &entry);
        if entry.app().id.as_str() != appid {
            return Err(Refusal::appid());
        }
        self.holds(&key, self.needs)?;
        self.reaches_path(&key)?;
        key.admit_call(&entry)?;
        let app = Arc::clone(&entry.app());
        let issued = self.app.broker.wechat().refresh_web_token(&app.id, &unwrapped.token).await?;
        self.grant(&key, &entry, &issued)
    }

    /// Exchanges the code of a mini program's login.
    pub(super) async fn session(&mut self, body: Arriving) -> Answer {
        let params = self.params(body).await?;
        let Proven { key, entry } = self.proven(&params, "secret")?;
        self.holds(&key, self.needs)?;
        self.reaches_path(&key)?;
        let code = params.get("js_code").ok_or_else(Refusal::no_code)?;
        if params.get("grant_type") != Some("authorization_code") {
            return Err(Refusal::grant_type("grant_type is authorization_code"));
        }
        key.admit_call(&entry)?;
        let code = AuthCode::new(code.to_owned());
        let session = self.app.broker.exchange_js_for_client(&entry, &key, &code).await?;
        self.app.broker.recheck(&key, &entry)?;
        let mut answer = Map::new();
        answer.insert("session_key".to_owned(), session.session_key.expose().into());
        answer.insert("openid".to_owned(), session.openid.as_str().into());
        if let Some(unionid) = &session.unionid {
            answer.insert("unionid".to_owned(), unionid.as_str().into());
        }
        Ok(json_answer(Family::Sns, &Value::Object(answer)))
    }

    /// Carries a call with a user's web token. A refusal of it says nothing about the app's token,
    /// and is passed on.
    pub(super) async fn web_call(&mut self, body: Arriving) -> Answer {
        let query = CallQuery::parse(self.head.uri.query())?;
        let token = query.token.as_deref().filter(|token| !token.is_empty());
        let token = token.ok_or_else(Refusal::no_token)?;
        let unwrapped = self.app.broker.unwrap_web_token(token);
        let unwrapped = unwrapped.map_err(Refusal::web_token)?;
        let (key, entry) = (unwrapped.key, unwrapped.entry);
        self.who = Who::of(&key, &entry);
        self.holds(&key, self.needs)?;
        self.reaches_path(&key)?;
        if query.tells_a_key() {
            return Err(Refusal::key_would_travel());
        }
        key.admit_call(&entry)?;
        let mut body = self.app.uploads.keep(body).await?;
        let faults = body.faults();
        let token = unwrapped.token.expose();
        self.app.broker.recheck(&key, &entry).map_err(Unanswered::from)?;
        let call = Forward {
            method: self.head.method.clone(),
            path_and_query: with_token(self.path, token, &query.rest),
            headers: upward(&self.head.headers),
            body: body.upload(),
        };
        let carried = forward(self.app, call, &faults, token).await;
        let carried = carried.map(|(answer, errcode)| (passed_on(answer, token), errcode));
        Ok(counted(carried, &key, &entry, self.path, self.request_id)?)
    }

    /// What WeChat told of a user, with its tokens wrapped.
    fn grant(&self, key: &ClientKey, entry: &AppEntry, issued: &IssuedGrant) -> Answer {
        let broker = &self.app.broker;
        broker.recheck(key, entry)?;
        let token = broker.wrap_web_token(entry, key, &issued.token);
        let refresh_token = broker.wrap_refresh_token(entry, key, &issued.refresh_token);
        let (Some(token), Some(refresh_token)) = (token, refresh_token) else {
            return Err(Refusal::busy("WeChat's token is too long to be wrapped"));
        };
        let mut answer = Map::new();
        answer.insert("access_token".to_owned(), token.into());
        answer.insert("expires_in".to_owned(), json!(issued.expires_in.as_secs()));
        answer.insert("refresh_token".to_owned(), refresh_token.into());
        answer.insert("openid".to_owned(), issued.openid.as_str().into());
        answer.insert("scope".to_owned(), issued.scope.as_str().into());
        if issued.is_snapshot_user {
            answer.insert("is_snapshotuser".to_owned(), json!(1));
        }
        if let Some(unionid) = &issued.unionid {
            answer.insert("unionid".to_owned(), unionid.as_str().into());
        }
        Ok(json_answer(Family::Sns, &Value::Object(answer)))
    }
}
