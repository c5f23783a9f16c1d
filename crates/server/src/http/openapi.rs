//! The description of the API, OpenAPI 3.1, made from the table of routes.
//!
//! `schemas` describes what goes in and out; the tests hold real answers against it.

mod schemas;

use std::collections::BTreeSet;

use axum::http::Response;
use serde_json::{Map, Value, json};

use super::{
    Access, Operation, ProblemType, ROUTES, Route, answer::json_body, service::Payload, token,
};

/// The OpenAPI 3.1 document of the API, as it is served and as it is checked in.
pub fn openapi() -> String {
    let mut paths = Map::new();
    for route in &ROUTES {
        let methods = paths.entry(route.path).or_insert_with(|| json!({}));
        methods[route.method.as_str().to_ascii_lowercase()] = described(route);
    }
    let document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "xinfu service API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Keeps the credentials of WeChat apps fresh and hands them to services. \
                Its errors are `application/problem+json` (RFC 9457) with a stable `type`. Every \
                answer of the API has an `X-Request-Id`, taken from the request where it has one of 1 to 64 \
                characters of `[A-Za-z0-9_-]`. What is no HTTP, or has a head over the limits, does not \
                get as far as the API: the HTTP layer refuses it with 400, 414 or 431, an empty \
                body and no request id.",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "http://127.0.0.1:7080" }],
        "paths": paths,
        "components": {
            "securitySchemes": { "clientKey": {
                "type": "http",
                "scheme": "bearer",
                "description": "A client key, `xk_…`, made with `xinfu key add`.",
            } },
            "headers": { "X-Request-Id": {
                "description": "The id of the request, as in the server's log.",
                "schema": { "type": "string" },
            } },
            "schemas": schemas::all(),
        },
    });
    let mut text = format!("{document:#}");
    text.push('\n');
    text
}

/// The document as an answer.
pub(super) fn answer() -> Response<Payload> {
    json_body(openapi().into_bytes())
}

/// One operation.
fn described(route: &Route) -> Value {
    let operation = route.operation;
    let mut described = json!({
        "operationId": operation.id(),
        "summary": route.summary,
        "description": description(operation),
        "tags": [tag(operation)],
    });
    if let Access::Needs(permission) = route.access {
        described["security"] = json!([{ "clientKey": [] }]);
        described["x-permission"] = permission.as_str().into();
    } else {
        described["security"] = json!([]);
    }
    let in_path = route.parameters().map(|name| parameter(operation, "path", name));
    let in_query = operation.query().iter().map(|name| parameter(operation, "query", name));
    let in_header = header(operation).map(|name| parameter(operation, "header", name));
    let parameters: Vec<_> = in_path.chain(in_query).chain(in_header).collect();
    if !parameters.is_empty() {
        described["parameters"] = parameters.into();
    }
    if let Some((schema, example)) = schemas::request(operation) {
        described["requestBody"] = json!({
            "required": true,
            "content": content("application/json", schema, &example),
        });
    }
    described["responses"] = responses(route);
    described
}

fn responses(route: &Route) -> Value {
    let request_id = json!({ "X-Request-Id": { "$ref": "#/components/headers/X-Request-Id" } });
    let mut responses = Map::new();
    if let Some((schema, example)) = schemas::success(route.operation) {
        let mut success = json!({
            "description": "As asked.",
            "headers": request_id,
            "content": content("application/json", schema, &example),
        });
        if route.operation == Operation::OpenApi {
            success["content"] = json!({ "application/json": { "schema": { "type": "object" } } });
        }
        responses.insert("200".to_owned(), success);
    }
    if let Some(nothing) = nothing(route.operation) {
        let nothing = json!({ "description": nothing, "headers": request_id });
        responses.insert("204".to_owned(), nothing);
    }
    let kinds = problems(route);
    let statuses: BTreeSet<u16> = kinds.iter().map(|kind| kind.status().as_u16()).collect();
    for status in statuses {
        let kinds = kinds.iter().filter(|kind| kind.status().as_u16() == status);
        let titles: Vec<_> =
            kinds.map(|kind| format!("{} (`{}`)", kind.title(), kind.uri())).collect();
        let mut headers = request_id.clone();
        let extra = match status {
            401 => Some(("WWW-Authenticate", "string", "How to authenticate.")),
            429 | 502 | 503 => Some((
                "Retry-After",
                "integer",
                "Seconds to wait before asking again, where that helps.",
            )),
            _ => None,
        };
        if let Some((name, of_type, description)) = extra {
            headers[name] = json!({ "description": description, "schema": { "type": of_type } });
        }
        let problem = json!({
            "description": format!("{}.", titles.join("; ")),
            "headers": headers,
            "content": { "application/problem+json": {
                "schema": { "$ref": "#/components/schemas/Problem" },
            } },
        });
        responses.insert(status.to_string(), problem);
    }
    Value::Object(responses)
}

fn content(media_type: &str, schema: &str, example: &Value) -> Value {
    let reference = format!("#/components/schemas/{schema}");
    json!({ media_type: { "schema": { "$ref": reference }, "example": example } })
}

/// The header that an operation looks at, beside those that all have.
fn header(operation: Operation) -> Option<&'static str> {
    matches!(operation, Operation::ExchangeCode | Operation::MiniLogin).then_some("Idempotency-Key")
}

/// When an operation answers 204, if it does.
fn nothing(operation: Operation) -> Option<&'static str> {
    match operation {
        Operation::ReadToken => {
            Some("With `after`: the generation is still that one, or the server is about to stop.")
        }
        Operation::ReportToken => {
            Some("Heard; the client key may not read tokens, so it is not told one.")
        }
        Operation::ForgetUser => Some("Nothing is held of the user any more."),
        Operation::ReadTicket
        | Operation::SignPage
        | Operation::ReadUser
        | Operation::ReadUsers
        | Operation::ListUsers
        | Operation::AuthorizeUrl
        | Operation::ExchangeCode
        | Operation::ReadGrants
        | Operation::ReadProfile
        | Operation::MiniLogin
        | Operation::MiniDecrypt
        | Operation::MiniCheckSignature
        | Operation::OpenApi
        | Operation::Health
        | Operation::Ready => None,
    }
}

/// What can go wrong with a route.
fn problems(route: &Route) -> Vec<ProblemType> {
    use ProblemType as P;
    /// What WeChat, or the way to it, does to a call.
    const CALL: [P; 5] =
        [P::WeChatForbidden, P::WeChatQuota, P::WeChatRefused, P::WeChatUnreachable, P::WeChatBusy];
    /// How an answer gets lost, where that is all that is lost.
    const LOST: [P; 2] = [P::WeChatUnreadable, P::WeChatTimeout];
    /// What becomes of a code.
    const CODE: [P; 8] = [
        P::WrongAppKind,
        P::CodeUsed,
        P::CodeMaybeSpent,
        P::CodeRefused,
        P::WeChatForbidden,
        P::WeChatRefused,
        P::WeChatUnreachable,
        P::StoreUnavailable,
    ];
    let mut kinds = vec![P::Malformed, P::Invalid, P::Internal];
    if route.access != Access::Public {
        kinds.extend([P::Unauthorized, P::Forbidden, P::AppNotFound]);
    }
    if matches!(tag(route.operation), "tokens" | "tickets" | "users") {
        kinds.extend([P::NoSuchCredential, P::TokenUnavailable, P::RefreshSlow]);
    }
    if route.access != Access::Public {
        kinds.push(P::Deadline);
    }
    if schemas::request(route.operation).is_some() {
        kinds.extend([P::BodyTimeout, P::BodyTooLarge, P::UnsupportedMediaType]);
    }
    match route.operation {
        Operation::ReadToken => kinds.push(P::TokenTooShort),
        Operation::ReadUser | Operation::ReadUsers | Operation::ListUsers => {
            kinds.extend(CALL);
            kinds.extend(LOST);
        }
        Operation::AuthorizeUrl => kinds.push(P::WrongAppKind),
        Operation::ExchangeCode | Operation::MiniLogin => kinds.extend(CODE),
        Operation::ReadGrants => kinds.extend([P::NoGrant, P::StoreUnavailable]),
        Operation::ForgetUser => kinds.push(P::StoreUnavailable),
        Operation::ReadProfile => {
            let own = [P::WrongAppKind, P::Reauthorize, P::RefreshSlow, P::StoreUnavailable];
            kinds.extend(own);
            kinds.extend(CALL);
            kinds.extend(LOST);
        }
        Operation::MiniDecrypt => {
            kinds.extend([P::WrongAppKind, P::Undecryptable, P::NoSession, P::StoreUnavailable]);
        }
        Operation::MiniCheckSignature => {
            kinds.extend([P::WrongAppKind, P::NoSession, P::StoreUnavailable]);
        }
        Operation::Ready => kinds.extend([P::Draining, P::StoreUnavailable]),
        Operation::ReportToken
        | Operation::ReadTicket
        | Operation::SignPage
        | Operation::OpenApi
        | Operation::Health => {}
    }
    kinds
}

fn tag(operation: Operation) -> &'static str {
    match operation {
        Operation::ReadToken | Operation::ReportToken => "tokens",
        Operation::ReadTicket | Operation::SignPage => "tickets",
        Operation::ReadUser | Operation::ReadUsers | Operation::ListUsers => "users",
        Operation::AuthorizeUrl
        | Operation::ExchangeCode
        | Operation::ReadGrants
        | Operation::ForgetUser
        | Operation::ReadProfile => "logins",
        Operation::MiniLogin | Operation::MiniDecrypt | Operation::MiniCheckSignature => {
            "mini programs"
        }
        Operation::OpenApi | Operation::Health | Operation::Ready => "server",
    }
}

fn description(operation: Operation) -> &'static str {
    match operation {
        Operation::ReadToken => {
            "Answers from memory; waits only when there is no usable token, or none that lives \
             for `min_ttl` more and its refresh is due. With `after` it is a long poll: it answers \
             as soon as the generation is another one, or 204 after `wait` seconds. Cache the \
             token for no longer than `expires_in`, and report it when WeChat refuses it."
        }
        Operation::ReportToken => {
            "To be called when WeChat answered 40001, 40014 or 42001. A report of a token that \
             was replaced already is answered with the new one at once; of the current one, it is \
             checked with WeChat first. Answers the token to use now, which is the same one if it \
             was found to work."
        }
        Operation::ReadTicket => "A ticket is kept fresh from the first time somebody asks for it.",
        Operation::SignPage => {
            "Signs the address of a page, without its fragment, with the `jsapi` ticket."
        }
        Operation::ReadUser => {
            "By the global token: what the account knows of a follower. For a user who does not \
             follow, `subscribe` is false and hardly any other field is filled. WeChat tells \
             nickname and avatar here to nobody since 27 December 2021, sex and region since 20 \
             October 2021: those fields are empty. For a nickname, see `readProfile`, which needs \
             the user's consent and not that they follow."
        }
        Operation::ReadUsers => {
            "Any number up to the server's `limits.batch`, usually 10,000; WeChat is asked for a \
             hundred at a time. One openid that WeChat does not accept fails the whole call."
        }
        Operation::ListUsers => {
            "A part of the list, and in `next_openid` what to ask with for the next part."
        }
        Operation::AuthorizeUrl => {
            "Send the browser there. The user consents, or is not asked with `snsapi_base`, and \
             WeChat sends the browser to `redirect_uri` with `code` and `state`. Keep the state in \
             the browser's session, and take no code that comes with another. The host of \
             `redirect_uri` must be registered in WeChat's console. Without `scope`, the narrowest \
             of the app's kind is meant: `snsapi_base`, on websites `snsapi_login`. Pages of \
             official accounts open inside WeChat only. `lang` matters for websites only, whose page \
             has the QR code."
        }
        Operation::ExchangeCode => {
            "A code is sent to WeChat at most once, whatever happens. Whoever repeats it within 10 \
             minutes with the same `binding` gets the same answer: browsers in WeChat do ask twice. \
             `binding` is a value that only this browser has, from a cookie or a session; it must \
             never stand in a URL, since links are shared with the code in them. Without one, a \
             repeat with the same `Idempotency-Key` is answered the same; the code itself is no \
             such key. The web token stays here; `expires_at` is its end. With `is_snapshotuser`, \
             the ids are made up and nothing was kept: do not keep them either. `unionid` is null \
             when it was never learnt; it is never the openid."
        }
        Operation::ReadGrants => {
            "One for each scope, the widest first. `live` means that the grant can still be used: \
             there is a web token, or what renews it; one of `snsapi_base` reads no profile even \
             so. 30 days after the authorisation a grant is over, whatever was renewed. `ended` has \
             WeChat's errcode for one that ended before: 40029, 40030, 42002 or 42007. Of a user \
             of whom only the unionid is known, `grants` is empty."
        }
        Operation::ForgetUser => {
            "Grants, profile, unionid and sessions of mini programs; the audit log keeps that it \
             was done. Also when there was nothing. At WeChat the authorisation goes on until the \
             user ends it."
        }
        Operation::ReadProfile => {
            "By the user's web token, renewed when needed: what the user consented to show, \
             whether or not they follow. Told again for an hour unless `fresh`. WeChat leaves `sex` \
             0 and `province`, `city`, `country` empty since 20 October 2021, and `headimgurl` \
             empty without an avatar; the address dies when the user changes it. A grant of \
             `snsapi_base` reads no profile. When the user has to authorise again, the problem \
             `reauthorize` has the address to send them to, and the `state` to put into their \
             session first. What the account knows of followers, \
             such as tags and remarks, is with `readUser`."
        }
        Operation::MiniLogin => {
            "By the same rules as `exchangeCode`. The session key stays here; `session` stands for \
             it in the two calls below, and opens nothing elsewhere."
        }
        Operation::MiniDecrypt => {
            "The data must be of the session's user and of this app; its `watermark` says so. A \
             later `wx.login` may change the key: log in first, read the data after it."
        }
        Operation::MiniCheckSignature => {
            "The signature is SHA-1 over `rawData` and the session key, which is only here."
        }
        Operation::OpenApi => "The OpenAPI document of the server's own version.",
        Operation::Health => "Answers as long as the process does.",
        Operation::Ready => "For load balancers: whether to send requests here.",
    }
}

/// A parameter of the path, the query or the head.
fn parameter(operation: Operation, place: &str, name: &str) -> Value {
    let longest = token::LONGEST_WAIT.as_secs();
    let cap = broker::MIN_TTL_CAP.as_secs();
    let (description, schema, example) = match name {
        "app" => (
            "The appid or the alias of a registered app.",
            json!({ "type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$" }),
            json!("wx0123456789abcdef"),
        ),
        "kind" => (
            "Which ticket.",
            json!({ "type": "string", "enum": ["jsapi", "wx_card"] }),
            json!("jsapi"),
        ),
        "openid" if tag(operation) == "logins" => (
            "The openid of a user of the app, percent-encoded where it needs to be.",
            json!({ "type": "string", "pattern": "^[!-~]{1,128}$" }),
            json!("oABCDEFGHIJKLMNOPQRSTUVWXYZ0"),
        ),
        "fresh" => (
            "Ask WeChat, even if a profile of less than an hour is here.",
            json!({ "type": "boolean", "default": false }),
            json!(true),
        ),
        "redirect_uri" => (
            "Where the user would come back to, should they have to authorise again. Without it, \
             what the exchange was given, else the scheme, host and path that this key last gave to \
             `authorizeUrl` in this process; when there is none, the problem has no address.",
            json!({ "type": "string", "maxLength": 1000 }),
            json!("https://www.example.com/wechat/callback"),
        ),
        "Idempotency-Key" => (
            "Shows that a repeat is the caller's own; not looked at with a `binding`. One made up \
             for this request, never the code.",
            json!({ "type": "string", "minLength": 1, "maxLength": 255 }),
            json!("8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ),
        "openid" | "next_openid" => (
            if name == "openid" {
                "The openid of a user of the app."
            } else {
                "The `next_openid` of the part before; without it, the first part is meant."
            },
            json!({ "type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$" }),
            json!("oABCDEFGHIJKLMNOPQRSTUVWXYZ0"),
        ),
        "lang" => (
            "The language in which WeChat names places.",
            json!({ "type": "string", "enum": ["zh_CN", "zh_TW", "en"] }),
            json!("zh_CN"),
        ),
        "min_ttl" => (
            "Seconds that the token has to live at least. Not with `after`.",
            json!({ "type": "integer", "minimum": 0, "maximum": cap }),
            json!(60),
        ),
        "after" => (
            "The generation that the caller has.",
            json!({ "type": "integer", "minimum": 0 }),
            json!(41),
        ),
        "wait" => (
            "Seconds to wait for another generation. Only with `after`.",
            json!({ "type": "integer", "minimum": 0, "maximum": longest, "default": 30 }),
            json!(30),
        ),
        unknown => unreachable!("the parameter `{unknown}` is not described"),
    };
    json!({
        "name": name,
        "in": place,
        "required": place == "path",
        "description": description,
        "schema": schema,
        "example": example,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn document() -> Value {
        serde_json::from_str(&openapi()).unwrap()
    }

    #[test]
    fn the_routes_of_the_table_are_in_it_and_nothing_else() {
        let document = document();
        let mut described = HashSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                let id = operation["operationId"].as_str().unwrap().to_owned();
                described.insert((method.to_uppercase(), path.clone(), id));
            }
        }
        let routes: HashSet<_> = ROUTES
            .iter()
            .map(|route| {
                let id = route.operation.id().to_owned();
                (route.method.to_string(), route.path.to_owned(), id)
            })
            .collect();
        assert_eq!(described, routes);
        for route in &ROUTES {
            let method = route.method.as_str().to_lowercase();
            let operation = &document["paths"][route.path][method];
            match route.access {
                Access::Public => assert_eq!(operation["security"], json!([])),
                Access::Needs(permission) => {
                    assert_eq!(operation["security"], json!([{ "clientKey": [] }]));
                    assert_eq!(operation["x-permission"], permission.as_str());
                }
            }
        }
    }

    #[test]
    fn references_lead_somewhere_and_every_schema_is_used() {
        let document = document();
        let mut used = HashSet::new();
        collect_references(&document, &mut used);
        for reference in &used {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        for name in document["components"]["schemas"].as_object().unwrap().keys() {
            assert!(used.contains(&format!("#/components/schemas/{name}")), "{name}");
        }
    }

    fn collect_references(value: &Value, found: &mut HashSet<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value {
                        Value::String(reference) if name == "$ref" => {
                            found.insert(reference.clone());
                        }
                        _ => collect_references(value, found),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| collect_references(item, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}
