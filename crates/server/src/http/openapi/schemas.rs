//! The shapes of what goes in and out, each with an example.

use serde_json::{Map, Value, json};

use super::{Operation, ProblemType};

/// The schema and an example of what an operation takes, if it takes a body.
pub(super) fn request(operation: Operation) -> Option<(&'static str, Value)> {
    match operation {
        Operation::ReportToken => {
            Some(("Report", json!({ "access_token": "80_1Zq0kW3xv", "errcode": 40001 })))
        }
        Operation::SignPage => {
            Some(("Page", json!({ "url": "https://www.example.com/shop?id=7" })))
        }
        Operation::ReadUsers => Some((
            "Batch",
            json!({
                "openids": ["oABCDEFGHIJKLMNOPQRSTUVWXYZ0", "oABCDEFGHIJKLMNOPQRSTUVWXYZ1"],
                "lang": "zh_CN",
            }),
        )),
        Operation::ReadToken
        | Operation::ReadTicket
        | Operation::ReadUser
        | Operation::ListUsers
        | Operation::OpenApi
        | Operation::Health
        | Operation::Ready => None,
    }
}

/// The schema and an example of what an operation answers.
pub(super) fn success(operation: Operation) -> (&'static str, Value) {
    match operation {
        Operation::ReadToken | Operation::ReportToken => (
            "Token",
            json!({
                "access_token": "80_1Zq0kW3xv",
                "expires_in": 6930,
                "expires_at": 1_789_617_600,
                "generation": 42,
            }),
        ),
        Operation::ReadTicket => (
            "Ticket",
            json!({
                "ticket": "kgt8ON7yVITDhtdwci0qe",
                "expires_in": 7200,
                "expires_at": 1_789_617_600,
                "generation": 3,
            }),
        ),
        Operation::SignPage => (
            "JssdkConfig",
            json!({
                "appId": "wx0123456789abcdef",
                "timestamp": 1_789_610_400,
                "nonceStr": "Wm3WZYTPz0wzccnW",
                "signature": "0f9de62fce790f9a083d5c99e95740ceb90c27ed",
            }),
        ),
        Operation::ReadUser => ("User", user_example()),
        Operation::ReadUsers => ("Users", json!({ "users": [user_example()] })),
        Operation::ListUsers => (
            "UserPage",
            json!({
                "total": 2,
                "count": 2,
                "openids": ["oABCDEFGHIJKLMNOPQRSTUVWXYZ0", "oABCDEFGHIJKLMNOPQRSTUVWXYZ1"],
                "next_openid": "oABCDEFGHIJKLMNOPQRSTUVWXYZ1",
            }),
        ),
        Operation::OpenApi => ("Status", json!({})),
        Operation::Health => ("Status", json!({ "status": "ok" })),
        Operation::Ready => ("Status", json!({ "status": "ready" })),
    }
}

/// All schemas by name.
pub(super) fn all() -> Value {
    json!({
        "Token": held("access_token", "The global access token."),
        "Ticket": held("ticket", "The ticket."),
        "Report": object(&[
            ("access_token", text("The token that WeChat refused.")),
            ("errcode", json!({
                "description": "WeChat's code: 40001, 40014 or 42001.",
                "oneOf": [{ "type": "integer" }, { "type": "string", "pattern": "^-?[0-9]+$" }],
            })),
        ], &[]),
        "Page": object(&[("url", json!({
            "type": "string",
            "maxLength": 2048,
            "description": "The page's address, `http` or `https`.",
        }))], &[]),
        "JssdkConfig": object(&[
            ("appId", text("The appid.")),
            ("timestamp", integer("Unix seconds.")),
            ("nonceStr", text("A random word.")),
            ("signature", text("SHA-1, in hexadecimal digits.")),
        ], &[]),
        "Batch": object(&[
            ("openids", json!({
                "type": "array",
                "minItems": 1,
                "maxItems": 10_000,
                "items": { "type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$" },
            })),
            ("lang", json!({ "type": "string", "enum": ["zh_CN", "zh_TW", "en"] })),
        ], &["lang"]),
        "User": user(),
        "Users": object(&[("users", json!({
            "type": "array",
            "items": { "$ref": "#/components/schemas/User" },
        }))], &[]),
        "UserPage": object(&[
            ("total", integer("How many follow the app.")),
            ("count", integer("How many are in this part.")),
            ("openids", json!({ "type": "array", "items": { "type": "string" } })),
            ("next_openid", optional("What to ask with for the next part; null at the end.")),
        ], &[]),
        "Status": object(&[("status", text("One word."))], &[]),
        "Problem": problem(),
    })
}

/// A credential that is handed out.
fn held(name: &str, description: &str) -> Value {
    object(
        &[
            (name, text(description)),
            ("expires_in", integer("Seconds that it lives from the moment of reading.")),
            ("expires_at", integer("When it ends, in Unix seconds by the store's clock.")),
            ("generation", integer("Counts the replacements; what a long poll compares.")),
        ],
        &[],
    )
}

fn user() -> Value {
    object(
        &[
            (
                "subscribe",
                json!({
                    "type": "boolean",
                    "description": "Whether the user follows the app.",
                }),
            ),
            ("openid", text("The user's id in this app.")),
            ("unionid", optional("The user's id in the owner's Open Platform account.")),
            ("language", text("The language of the user's WeChat.")),
            ("subscribe_time", integer("When the user last followed, in Unix seconds.")),
            ("subscribe_scene", text("How the user came to follow.")),
            ("remark", text("What the app's operators noted about the user.")),
            ("groupid", integer("The group that the operators put the user in.")),
            ("tagid_list", json!({ "type": "array", "items": { "type": "integer" } })),
            ("qr_scene", integer("The number of the QR code that the user came by.")),
            ("qr_scene_str", text("The text of the QR code that the user came by.")),
            ("nickname", text("Empty since the end of 2021.")),
            ("sex", integer("0 since the end of 2021.")),
            ("city", text("Empty since the end of 2021.")),
            ("province", text("Empty since the end of 2021.")),
            ("country", text("Empty since the end of 2021.")),
            ("headimgurl", text("Empty since the end of 2021.")),
        ],
        &[],
    )
}

fn user_example() -> Value {
    json!({
        "subscribe": true,
        "openid": "oABCDEFGHIJKLMNOPQRSTUVWXYZ0",
        "unionid": "oUNIONUNIONUNIONUNIONUNION00",
        "language": "zh_CN",
        "subscribe_time": 1_789_000_000,
        "subscribe_scene": "ADD_SCENE_QR_CODE",
        "remark": "",
        "groupid": 0,
        "tagid_list": [2],
        "qr_scene": 98765,
        "qr_scene_str": "",
        "nickname": "",
        "sex": 0,
        "city": "",
        "province": "",
        "country": "",
        "headimgurl": "",
    })
}

fn problem() -> Value {
    let uris: Vec<_> = ProblemType::ALL.iter().map(|kind| kind.uri()).collect();
    let mut problem = object(
        &[
            ("type", json!({ "type": "string", "enum": uris })),
            ("title", text("What it is, in a few words, the same for each occurrence.")),
            ("status", integer("The HTTP status.")),
            ("detail", text("What happened and what to do about it, for people.")),
            ("field", text("Which parameter or field is wrong.")),
            (
                "wechat",
                object(
                    &[
                        ("errcode", integer("WeChat's code.")),
                        ("errmsg", optional("WeChat's text.")),
                        ("rid", optional("WeChat's id of the request.")),
                    ],
                    &[],
                ),
            ),
            ("request_id", text("The id of the request, as in the server's log.")),
        ],
        &["field", "wechat"],
    );
    problem["description"] = "A problem after RFC 9457.".into();
    problem["example"] = json!({
        "type": ProblemType::TokenUnavailable.uri(),
        "title": ProblemType::TokenUnavailable.title(),
        "status": 503,
        "detail": "WeChat answered 40164: invalid ip 203.0.113.7, not in whitelist. Add 203.0.113.7 \
                   to the app's IP whitelist in WeChat's console.",
        "wechat": { "errcode": 40164, "errmsg": "invalid ip 203.0.113.7, not in whitelist", "rid": null },
        "request_id": "5f2c9a01-00002a",
    });
    problem
}

/// An object with these fields and no other, all required but the `optional` ones.
fn object(fields: &[(&str, Value)], optional: &[&str]) -> Value {
    let required: Vec<_> =
        fields.iter().map(|(name, _)| *name).filter(|name| !optional.contains(name)).collect();
    let properties: Map<_, _> =
        fields.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    json!({
        "type": "object",
        "required": required,
        "additionalProperties": false,
        "properties": properties,
    })
}

fn text(description: &str) -> Value {
    json!({ "type": "string", "description": description })
}

fn optional(description: &str) -> Value {
    json!({ "type": ["string", "null"], "description": description })
}

fn integer(description: &str) -> Value {
    json!({ "type": "integer", "description": description })
}
