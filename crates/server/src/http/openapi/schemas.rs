//! The shapes of what goes in and out, each with an example.

use serde_json::{Map, Value, json};

use super::{Operation, ProblemType};

/// An id of a session, in examples.
const SESSION: &str = "ms_J3kq9Yv0Z8tTn2bXw5rJ7mLd1cHf6gPs";

/// An address of WeChat's page, in examples.
const AUTHORIZE_URL: &str = "https://open.weixin.qq.com/connect/oauth2/authorize?appid=wx0123456789abcdef\
     &redirect_uri=https%3A%2F%2Fwww.example.com%2Fwechat%2Fcallback&response_type=code\
     &scope=snsapi_userinfo&state=kq3Yv0Z8tTn2bXw5rJ7mLd1cHf6gPs9A#wechat_redirect";

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
        Operation::AuthorizeUrl => Some((
            "Authorize",
            json!({
                "redirect_uri": "https://www.example.com/wechat/callback",
                "scope": "snsapi_userinfo",
            }),
        )),
        Operation::ExchangeCode => Some((
            "Exchange",
            json!({ "code": "021rXw0w3Yz8rX2a1b0w3Qq8Tz1rXw0p", "binding": "mZc1tqT9vJ7bRkPz" }),
        )),
        Operation::MiniLogin => Some((
            "MiniCode",
            json!({ "js_code": "0a3rXw0w3Yz8rX2a1b0w3Qq8Tz1rXw0p", "binding": "mZc1tqT9vJ7bRkPz" }),
        )),
        Operation::MiniDecrypt => Some((
            "MiniEncrypted",
            json!({
                "session": SESSION,
                "encryptedData": "CiyLU1Aw2KjvrjMdj8YKliAjtP4gsMZMQmRzooG2xrDcvSnxIMXFufNstNGTyaGS",
                "iv": "r7BXXKkLb8qrSNn05n0qiA==",
            }),
        )),
        Operation::MiniCheckSignature => Some((
            "MiniSigned",
            json!({
                "session": SESSION,
                "rawData": "{\"nickName\":\"Band\",\"gender\":1}",
                "signature": "75e81ceda165f4ffa64f4068af58c64b8f54b88c",
            }),
        )),
        Operation::ReadToken
        | Operation::ReadTicket
        | Operation::ReadUser
        | Operation::ListUsers
        | Operation::ReadGrants
        | Operation::ForgetUser
        | Operation::ReadProfile
        | Operation::OpenApi
        | Operation::Health
        | Operation::Ready => None,
    }
}

/// The schema and an example of what an operation answers, if it has an answer with a body.
pub(super) fn success(operation: Operation) -> Option<(&'static str, Value)> {
    Some(match operation {
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
        Operation::AuthorizeUrl => (
            "AuthorizeUrl",
            json!({ "url": AUTHORIZE_URL, "state": "kq3Yv0Z8tTn2bXw5rJ7mLd1cHf6gPs9A" }),
        ),
        Operation::ExchangeCode => (
            "Identity",
            json!({
                "openid": "oABCDEFGHIJKLMNOPQRSTUVWXYZ0",
                "unionid": "oUNIONUNIONUNIONUNIONUNION00",
                "scope": "snsapi_userinfo",
                "is_snapshotuser": false,
                "expires_at": 1_789_617_600,
            }),
        ),
        Operation::ReadGrants => ("Grants", grants_example()),
        Operation::ForgetUser => return None,
        Operation::ReadProfile => ("Profile", profile_example()),
        Operation::MiniLogin => (
            "MiniLogin",
            json!({
                "session": SESSION,
                "openid": "oABCDEFGHIJKLMNOPQRSTUVWXYZ0",
                "unionid": null,
                "expires_at": 1_789_617_600,
            }),
        ),
        Operation::MiniDecrypt => (
            "MiniData",
            json!({ "data": {
                "phoneNumber": "13580006666",
                "watermark": { "timestamp": 1_789_610_400, "appid": "wx0123456789abcdef" },
            } }),
        ),
        Operation::MiniCheckSignature => ("MiniValid", json!({ "valid": true })),
        Operation::OpenApi => ("Status", json!({})),
        Operation::Health => ("Status", json!({ "status": "ok" })),
        Operation::Ready => {
            ("Readiness", json!({ "status": "ready", "store": "reachable", "shared": "reachable" }))
        }
    })
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
        "Authorize": authorize(),
        "AuthorizeUrl": object(&[
            ("url", text("WeChat's page.")),
            ("state", text("What comes back beside the code.")),
        ], &[]),
        "Exchange": object(&[
            ("code", code("What WeChat sent the browser back with.")),
            ("binding", binding()),
            ("redirect_uri", optional("As it was given to `authorize-url`, without `code` and `state`: \
                remembered, to send the user there again when they have to authorise anew.")),
        ], &["binding", "redirect_uri"]),
        "Identity": identity(),
        "Grants": grants(),
        "Profile": profile(),
        "MiniCode": object(&[
            ("js_code", code("What `wx.login` gave.")),
            ("binding", binding()),
        ], &["binding"]),
        "MiniLogin": object(&[
            ("session", text("Stands for the session key, in this app and for this server only.")),
            ("openid", text("The user's id in this app.")),
            ("unionid", optional("The user's id in the owner's Open Platform account, if learnt.")),
            ("expires_at", integer("Until when the session is kept.")),
        ], &[]),
        "MiniEncrypted": object(&[
            ("session", text("That of the login.")),
            ("encryptedData", text("As the mini program got it, base64.")),
            ("iv", text("As the mini program got it, base64 of 16 bytes.")),
        ], &[]),
        "MiniData": object(&[("data", json!({
            "type": "object",
            "description": "The fields, by WeChat's names, with the `watermark`.",
        }))], &[]),
        "MiniSigned": object(&[
            ("session", text("That of the login.")),
            ("rawData", text("As the mini program got it, to the byte.")),
            ("signature", json!({ "type": "string", "pattern": "^[0-9a-f]{40}$" })),
        ], &[]),
        "MiniValid": object(&[("valid", json!({ "type": "boolean" }))], &[]),
        "Status": object(&[("status", text("One word."))], &[]),
        "Readiness": object(&[
            ("status", text("`ready`.")),
            ("store", json!({
                "description": "Whether the store answered the last time that it was looked at.",
                "enum": ["reachable", "unreachable"],
            })),
            ("shared", json!({
                "description":
                    "The same of what gives leases and wake-ups: the store, or what `shared` names.",
                "enum": ["reachable", "unreachable"],
            })),
        ], &[]),
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

fn authorize() -> Value {
    let flag = |description: &str| json!({ "type": "boolean", "description": description });
    object(
        &[
            (
                "redirect_uri",
                json!({
                    "type": "string",
                    "maxLength": 1000,
                    "description": "Where WeChat sends the browser with the code, `http` or `https`.",
                }),
            ),
            (
                "scope",
                json!({
                    "type": ["string", "null"],
                    "enum": ["snsapi_base", "snsapi_userinfo", "snsapi_login", null],
                }),
            ),
            (
                "state",
                json!({
                    "type": ["string", "null"],
                    "pattern": "^[a-zA-Z0-9]{1,128}$",
                    "description": "Without it, 32 random characters.",
                }),
            ),
            ("force_popup", flag("Ask for consent even where WeChat would not.")),
            ("force_snapshot", flag("Show the page as a snapshot, for tests.")),
            ("lang", json!({ "type": ["string", "null"], "enum": ["cn", "en", null] })),
        ],
        &["scope", "state", "force_popup", "force_snapshot", "lang"],
    )
}

fn code(description: &str) -> Value {
    json!({ "type": "string", "pattern": "^[!-~]{1,512}$", "description": description })
}

fn binding() -> Value {
    json!({
        "type": ["string", "null"],
        "minLength": 1,
        "maxLength": 512,
        "description": "A value that only this browser has, from a cookie or a session. Never from \
            a URL, and never the code or the state.",
    })
}

fn scope() -> Value {
    json!({
        "type": "string",
        "enum": ["snsapi_base", "snsapi_userinfo", "snsapi_login"],
        "description": "What the user consented to.",
    })
}

fn identity() -> Value {
    object(
        &[
            ("openid", text("The user's id in this app.")),
            (
                "unionid",
                optional("The user's id in the owner's Open Platform account, if ever learnt."),
            ),
            ("scope", scope()),
            (
                "is_snapshotuser",
                json!({
                    "type": "boolean",
                    "description": "The ids are made up and nothing was kept.",
                }),
            ),
            ("expires_at", integer("When the web token ends, in Unix seconds.")),
        ],
        &[],
    )
}

fn grants() -> Value {
    let ended = object(
        &[
            ("at", integer("When WeChat said so, in Unix seconds.")),
            ("errcode", integer("40029, 40030, 42002 or 42007.")),
        ],
        &[],
    );
    let mut nullable = ended;
    nullable["type"] = json!(["object", "null"]);
    let grant = object(
        &[
            ("scope", scope()),
            ("state", json!({ "type": "string", "enum": ["live", "ended"] })),
            ("authorised_at", integer("When the user authorised, in Unix seconds.")),
            ("token_expires_at", integer("When the web token ends or ended.")),
            ("renewable_until", integer("Until when it can be renewed.")),
            ("ended", nullable),
        ],
        &[],
    );
    object(
        &[
            ("openid", text("The user's id in this app.")),
            (
                "unionid",
                optional("The user's id in the owner's Open Platform account, if ever learnt."),
            ),
            ("grants", json!({ "type": "array", "items": grant })),
        ],
        &[],
    )
}

fn grants_example() -> Value {
    json!({
        "openid": "oABCDEFGHIJKLMNOPQRSTUVWXYZ0",
        "unionid": "oUNIONUNIONUNIONUNIONUNION00",
        "grants": [{
            "scope": "snsapi_userinfo",
            "state": "live",
            "authorised_at": 1_789_610_400,
            "token_expires_at": 1_789_617_600,
            "renewable_until": 1_792_202_400,
            "ended": null,
        }],
    })
}

fn profile() -> Value {
    object(
        &[
            ("openid", text("The user's id in this app.")),
            ("nickname", text("The nickname, of any characters.")),
            ("sex", integer("0 since October 2021.")),
            ("province", text("Empty since October 2021.")),
            ("city", text("Empty since October 2021.")),
            ("country", text("Empty since October 2021.")),
            ("headimgurl", text("The address of the avatar; empty without one.")),
            ("privilege", json!({ "type": "array", "items": { "type": "string" } })),
            (
                "unionid",
                optional("The user's id in the owner's Open Platform account, if ever learnt."),
            ),
            ("scope", scope()),
            ("fetched_at", integer("When WeChat told it, in Unix seconds.")),
            ("fresh_until", integer("Until when it is told again without asking WeChat.")),
        ],
        &[],
    )
}

fn profile_example() -> Value {
    json!({
        "openid": "oABCDEFGHIJKLMNOPQRSTUVWXYZ0",
        "nickname": "小明",
        "sex": 0,
        "province": "",
        "city": "",
        "country": "",
        "headimgurl": "https://thirdwx.qlogo.cn/mmopen/vi_32/Q0j4TwGTfTK/132",
        "privilege": [],
        "unionid": "oUNIONUNIONUNIONUNIONUNION00",
        "scope": "snsapi_userinfo",
        "fetched_at": 1_789_610_400,
        "fresh_until": 1_789_614_000,
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
            (
                "authorize_url",
                optional("With `reauthorize`: where to send the user; null when it is not known."),
            ),
            ("state", optional("With `reauthorize`: the state in that address.")),
            ("request_id", text("The id of the request, as in the server's log.")),
        ],
        &["field", "wechat", "authorize_url", "state"],
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
