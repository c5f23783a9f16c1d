//! The WeChat-compatible endpoint: what an SDK finds in WeChat's place.
//!
//! An SDK is given our address as its base URL, and a client key as its AppSecret. It fetches a
//! token and gets a *pass* (`xt_…`); it calls WeChat's API with the pass, and the app's token is put
//! in its place. What it hears is what WeChat answers, or a refusal in WeChat's words (`refusal`).
//!
//! [`COMPATIBLE`] is the policy: every path has an entry, the last one is for all that is not named.
//! `params` reads what SDKs send, `issue` answers what is about tokens and secrets, `web` what is
//! about users who authorised; everything else is carried ([`super::carry`]).

mod issue;
mod params;
mod refusal;
mod web;

use std::pin::pin;

use axum::http::{HeaderValue, Request, Response, request};
use broker::{
    DeadPass, Passed,
    key::{NotKnown, Permission},
    path::CallPath,
};
use bytes::Bytes;
use hyper::body::Body;

pub(crate) use params::{CallQuery, Params};
pub(super) use refusal::{Family, Refusal};

use super::{
    App,
    call::caught,
    carry::{Call, Who, carry},
    request_id::X_REQUEST_ID,
    service::Payload,
    upload::Arriving,
};

/// The most bytes of a body that is looked at, and not only carried.
const LOOKED_AT: usize = 64 * 1024;

/// What the compatible endpoint does with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compatible {
    /// Answers a pass, or to a key that may see it the token.
    Token,
    /// Answers the broker's ticket.
    Ticket,
    /// Sets the day's counters to zero, with the app's secret.
    ClearQuota,
    /// Exchanges the code of a web authorisation, with the app's secret.
    Exchange,
    /// Renews a web token.
    Renew,
    /// Exchanges the code of a mini program's login, with the app's secret.
    Session,
    /// Carries a call with a user's web token.
    WebCall,
    /// Carries a call with the app's global token.
    Call,
}

/// One entry of the policy of the compatible endpoint.
#[derive(Clone, Copy, Debug)]
pub struct CompatibleRoute {
    /// The path; `/*` at the end is for all below.
    pub path: &'static str,
    /// What is done with it.
    pub does: Compatible,
    /// The permission that the client key needs.
    pub needs: Permission,
}

/// The policy of the compatible endpoint. The first entry that matches counts.
pub static COMPATIBLE: [CompatibleRoute; 9] = [
    CompatibleRoute { path: "/cgi-bin/token", does: Compatible::Token, needs: Permission::Proxy },
    CompatibleRoute {
        path: "/cgi-bin/stable_token",
        does: Compatible::Token,
        needs: Permission::Proxy,
    },
    CompatibleRoute {
        path: "/cgi-bin/ticket/getticket",
        does: Compatible::Ticket,
        needs: Permission::Proxy,
    },
    CompatibleRoute {
        path: "/cgi-bin/clear_quota/v2",
        does: Compatible::ClearQuota,
        needs: Permission::ClearQuota,
    },
    CompatibleRoute {
        path: "/sns/oauth2/access_token",
        does: Compatible::Exchange,
        needs: Permission::Oauth,
    },
    CompatibleRoute {
        path: "/sns/oauth2/refresh_token",
        does: Compatible::Renew,
        needs: Permission::Oauth,
    },
    CompatibleRoute {
        path: "/sns/jscode2session",
        does: Compatible::Session,
        needs: Permission::SessionKey,
    },
    CompatibleRoute { path: "/sns/*", does: Compatible::WebCall, needs: Permission::Oauth },
    CompatibleRoute { path: "/*", does: Compatible::Call, needs: Permission::Proxy },
];

impl CompatibleRoute {
    fn of(path: CallPath<'_>) -> &'static Self {
        let path = path.as_str();
        COMPATIBLE
            .iter()
            .find(|route| match route.path.strip_suffix('*') {
                Some(above) => path.starts_with(above),
                None => path == route.path,
            })
            .unwrap_or(&COMPATIBLE[COMPATIBLE.len() - 1])
    }
}

/// What an answer is: one to pass on, or a no.
type Answer = Result<Response<Payload>, Refusal>;

/// A request, and what is found out about who sent it.
struct Asked<'a> {
    app: &'a App,
    head: &'a request::Parts,
    path: CallPath<'a>,
    needs: Permission,
    request_id: &'a HeaderValue,
    who: Who,
}

/// Answers a request as WeChat would.
pub(super) async fn answer<B>(app: &App, request: Request<B>) -> Response<Payload>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    let body = app.uploads.arriving(&head.headers, body);
    let request_id = app.request_ids.of(&head.headers);
    let raw_path = head.uri.path();
    let family = if raw_path.starts_with("/sns/") { Family::Sns } else { Family::Cgi };

    let mut who = Who::default();
    let path = CallPath::parse(raw_path);
    let answer = match path {
        Err(flaw) => Err(Refusal::path(flaw.to_string())),
        Ok(path) => {
            let route = CompatibleRoute::of(path);
            let mut asked = Asked {
                app,
                head: &head,
                path,
                needs: route.needs,
                request_id: &request_id,
                who: Who::default(),
            };
            let answer = {
                let work = pin!(asked.work(route.does, body));
                caught(&request_id, work).await
            };
            let answer = answer
                .unwrap_or_else(|| Err(Refusal::busy("a bug of the server; its log has more")));
            who = asked.who;
            answer
        }
    };

    let mut response = answer.unwrap_or_else(|refusal| {
        let rid = app.request_ids.rid(app.broker.now());
        tracing::info!(
            rid,
            request.id = request_id.to_str().unwrap_or_default(),
            method = %head.method,
            // A path that is not accepted may quote anything.
            path = path.map_or("", CallPath::name),
            key.id = who.key_id(),
            app.id = who.app_id(),
            errcode = refusal.errcode,
            why = %refusal.why,
            "a compatible call was refused"
        );
        refusal.into_response(family, &rid)
    });
    response.headers_mut().insert(X_REQUEST_ID, request_id);
    response
}

impl Asked<'_> {
    async fn work(&mut self, does: Compatible, body: Arriving) -> Answer {
        match does {
            Compatible::Call => self.call(body).await,
            // The others are rare: the state of a call that is carried stays small without theirs.
            Compatible::Token => Box::pin(self.token(body)).await,
            Compatible::Ticket => Box::pin(self.ticket(body)).await,
            Compatible::ClearQuota => Box::pin(self.clear_quota(body)).await,
            Compatible::Exchange => Box::pin(self.exchange(body)).await,
            Compatible::Renew => Box::pin(self.renew(body)).await,
            Compatible::Session => Box::pin(self.session(body)).await,
            Compatible::WebCall => Box::pin(self.web_call(body)).await,
        }
    }

    /// Carries a call whose token is a pass.
    async fn call(&mut self, body: Arriving) -> Answer {
        let query = CallQuery::parse(self.head.uri.query())?;
        let token = query.token.as_deref().filter(|token| !token.is_empty());
        let Passed { key, entry } = self.passed(token.ok_or_else(Refusal::no_token)?).await?;
        key.rights.may_call(self.path).map_err(|why| Refusal::not_allowed(&why))?;
        if query.tells_a_key() {
            return Err(Refusal::key_would_travel());
        }
        key.admit_call(&entry)?;
        let call = Call {
            key: &key,
            entry: &entry,
            method: &self.head.method,
            path: self.path,
            query: &query.rest,
            headers: &self.head.headers,
            body,
            request_id: self.request_id,
        };
        Ok(carry(self.app, call).await?)
    }

    /// Whose pass it is.
    async fn passed(&mut self, token: &str) -> Result<Passed, Refusal> {
        let broker = &self.app.broker;
        let passed = match broker.resolve_pass(token) {
            // Another replica may have sealed it with a key that is not here yet.
            Err(DeadPass::UnknownKey) => Box::pin(broker.resolve_pass_again(token)).await,
            passed => passed,
        };
        let passed = passed.map_err(|dead| match dead {
            DeadPass::Expired => Refusal::token_expired(),
            DeadPass::Stale => NotKnown::Stale.into(),
            DeadPass::Invalid | DeadPass::UnknownKey => Refusal::token(kind_of(token)),
        })?;
        self.who = Who::of(&passed.key, &passed.entry);
        Ok(passed)
    }
}

/// What a token that is no pass looks like, for people.
fn kind_of(token: &str) -> &'static str {
    match token.get(..3) {
        Some("xt_") => "the pass was altered, or its client key was revoked",
        Some("xw_" | "xr_") => "a user's web token is good for /sns only",
        Some("xk_") => "a client key is no token; fetch one from cgi-bin/token",
        _ => "it is not a pass; fetch one from cgi-bin/token here",
    }
}
