//! No secret leaves: not in logs, not in errors, not in the clear part of the database.

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD},
};
use clock::Clock;
use serde_json::{Map, Value, json};
use sim::{AppKind, AppSpec, Fault, FaultKind, Revocation, Scope, Sim, Switches, UserSpec};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    cluster::{Database, named_by},
    process::{Folder, PATIENCE, Printed, Server, SimProcess, http},
};

/// With characters that queries escape.
const SECRET: &str = "canary+Secret/one=0123456789";
const WRONG: &str = "canary+Secret/wrong=987654321";
/// Of the database, and as a URL writes it.
const PASSWORD: &str = "canary+Password/of=a-database";
const PASSWORD_IN_URL: &str = "canary%2BPassword%2Fof%3Da-database";
const BINDING: &str = "canary+Binding/of=0a-browser";
const NICKNAME: &str = "canary-nickname-of-a-user";
const STATE: &str = "canaryStateOfABrowser0123456789";
/// Stands in the query of a redirect URI.
const RETURN_KEY: &str = "canary-return-key-0123456789";

/// What must not be seen, and everything that was.
struct Canaries {
    secrets: Vec<(String, Vec<u8>)>,
    seen: Vec<(String, Vec<u8>)>,
}

impl Canaries {
    fn hide(&mut self, name: &str, secret: impl AsRef<[u8]>) {
        let secret = secret.as_ref().to_vec();
        assert!(secret.len() >= 20, "{name} is too short to be looked for");
        self.secrets.push((name.to_owned(), secret));
    }

    fn saw(&mut self, what: &str, printed: &Printed) {
        self.seen.push((format!("{what}: standard output"), printed.out.clone().into_bytes()));
        self.saw_err(what, printed);
    }

    fn saw_err(&mut self, what: &str, printed: &Printed) {
        self.seen.push((format!("{what}: standard error"), printed.err.clone().into_bytes()));
    }

    fn check(&self) {
        let find = |text: &[u8], form: &[u8]| text.windows(form.len()).any(|part| part == form);
        for (name, secret) in &self.secrets {
            for form in forms(secret) {
                for (place, text) in &self.seen {
                    let form_shown = String::from_utf8_lossy(&form);
                    assert!(!find(text, &form), "{name} is in {place}, as {form_shown}");
                }
            }
        }
    }
}

/// A secret as it is, in base64 at each of its three alignments, in hexadecimal, and as queries
/// write it.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = vec![secret.to_vec()];
    for skip in 0..3 {
        let part = &secret[skip..];
        let part = &part[..part.len() / 3 * 3];
        forms.push(BASE64_STANDARD_NO_PAD.encode(part).into_bytes());
        forms.push(BASE64_URL_SAFE_NO_PAD.encode(part).into_bytes());
    }
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    forms.push(hex.to_uppercase().into_bytes());
    forms.push(hex.into_bytes());
    let escape = |byte: &u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(*byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    let escaped: String = secret.iter().map(escape).collect();
    forms.push(escaped.to_lowercase().into_bytes());
    forms.push(escaped.into_bytes());
    // As a list of numbers, which is how `Debug` shows bytes.
    forms.push(format!("{secret:?}").trim_matches(['[', ']']).as_bytes().to_vec());
    forms
}

/// Where the state of a server is kept.
#[derive(Clone, Copy)]
enum Kept {
    Sqlite,
    /// In PostgreSQL, with leases in Redis.
    Postgres,
}

impl Kept {
    async fn set_up(self, folder: &mut Folder, canaries: &mut Canaries) -> Option<Database> {
        let Self::Postgres = self else { return None };
        let database = Database::fresh().await;
        canaries.hide("the database's password", PASSWORD);
        let Database { host, name, .. } = &database;
        folder.set("XINFU_STORE", &format!("postgres://xinfu:{PASSWORD_IN_URL}@{host}/{name}"));
        let redis = named_by("XINFU_TEST_REDIS");
        folder.set("XINFU_SHARED", &format!("{redis}?prefix={name}"));
        Some(database)
    }
}

impl Canaries {
    /// Sees all that is stored.
    async fn saw_stored(&mut self, folder: &Folder, database: Option<&Database>) {
        if let Some(database) = database {
            let dump = database.dump().await;
            assert!(dump.contains("wx1"), "{dump}");
            self.seen.push(("the database".to_owned(), dump.into_bytes()));
            return;
        }
        for file in ["xinfu.db", "xinfu.db-wal"] {
            let bytes = std::fs::read(folder.path(file)).unwrap();
            assert!(bytes.len() > 1000, "{file} is written to");
            self.seen.push((file.to_owned(), bytes));
        }
    }
}

async fn check_format(format: &str, kept: Kept) {
    let apps = [("wx1", SECRET), ("wx2", SECRET), ("wx3", SECRET), ("wx4", SECRET)];
    let sim = SimProcess::start_with(&apps, &[("XINFU_LOG", "trace")]).await;
    sim.control("/sim/users", &json!({"appid": "wx1", "openid": "oFollower"})).await;
    let mut folder = Folder::ready(&sim).await;
    folder.set("XINFU_LOG", "trace");
    folder.set("XINFU_LOG_FORMAT", format);
    let mut canaries = Canaries { secrets: Vec::new(), seen: Vec::new() };
    let database = kept.set_up(&mut folder, &mut canaries).await;
    canaries.hide("the AppSecret", SECRET);
    canaries.hide("a wrong AppSecret", WRONG);
    let master_key = std::fs::read_to_string(folder.path("master-k1.key")).unwrap();
    canaries.hide("the master key's text", master_key.trim());
    let bytes = base64::prelude::BASE64_STANDARD.decode(master_key.trim()).unwrap();
    canaries.hide("the master key", bytes);

    let mut server = folder.serve().await;
    canaries.saw("app add", &folder.add_app("wx1", SECRET, &["--alias", "one"]).await.ok());
    canaries.saw("app add", &folder.add_app("wx2", SECRET, &["--issuer", "classic"]).await.ok());
    canaries.saw("app add", &folder.add_app("wx3", WRONG, &[]).await.ok());
    canaries.saw("app add again", &folder.add_app("wx3", SECRET, &[]).await.failed(1));
    let made = folder.xinfu(&["key", "add", "all", "--everything"]).await.ok();
    let key = made.out.trim().to_owned();
    canaries.hide("the client key", &key);
    canaries.saw_err("key add", &made);

    server.answers("one", &key, 200, PATIENCE).await;
    server.answers("wx2", &key, 200, PATIENCE).await;
    server.answers("wx3", &key, 503, PATIENCE).await;
    let mut answers = Vec::new();
    for (app, issuer) in [("wx1", "stable"), ("wx2", "classic")] {
        let path = format!("/v1/apps/{app}/token");
        let (_, token) = server.get(&path, &key).await;
        canaries.hide("a token", token["access_token"].as_str().unwrap());
        sim.kill_token(app, issuer).await;
        let report = json!({"access_token": token["access_token"], "errcode": 40001});
        let (status, token) = server.post(&format!("{path}/report"), &key, &report).await;
        assert_eq!(status, 200, "{token}");
        canaries.hide("a token", token["access_token"].as_str().unwrap());
    }
    let (_, ticket) = server.get("/v1/apps/one/tickets/jsapi", &key).await;
    canaries.hide("a ticket", ticket["ticket"].as_str().unwrap());

    let page = json!({"url": "https://shop.example/"});
    answers.push(server.post("/v1/apps/one/jssdk/config", &key, &page).await);
    let batch = json!({"openids": ["oFollower", "oNobody"]});
    answers.push(server.post("/v1/apps/one/users/batch", &key, &batch).await);
    answers.push(server.get("/v1/apps/one/users", &key).await);
    let (_, polled) = server.get("/v1/apps/one/token?after=0&wait=5", &key).await;
    canaries.hide("a token", polled["access_token"].as_str().unwrap());
    answers.push(server.get("/v1/apps/one/token?after=2&wait=1", &key).await);

    // What SDKs send, and what is sent in its place.
    let at = |path: &str| format!("{}{path}", server.url);
    let fetch = format!("/cgi-bin/token?grant_type=client_credential&appid=wx1&secret={key}");
    let (_, issued) = http("GET", &at(&fetch), None, None).await.unwrap();
    let pass = issued["access_token"].as_str().unwrap().to_owned();
    canaries.hide("a pass", &pass);
    let info = format!("/cgi-bin/user/info?openid=oFollower&access_token={pass}");
    for path in [
        info.clone(),
        format!("/cgi-bin/some/thing?access_token={pass}"),
        format!("/cgi-bin//user/info?access_token={pass}"),
        format!("/cgi-bin/user/info?access_token={pass}x"),
        format!("/cgi-bin/user/info?access_token={pass}&secret={key}"),
        format!("/sns/userinfo?access_token={pass}"),
        format!("/cgi-bin/token?grant_type=client_credential&appid=wx1&secret={SECRET}"),
    ] {
        let (status, answer) = http("GET", &at(&path), None, None).await.unwrap();
        assert_eq!(status, 200, "{answer}");
        answers.push((status, answer));
    }
    sim.kill_token("wx1", "stable").await;
    answers.push(http("GET", &at(&info), None, None).await.unwrap());
    answers.push(server.get("/wx/one/cgi-bin/user/info?openid=oFollower", &key).await);
    let (_, healed) = server.get("/v1/apps/one/token", &key).await;
    canaries.hide("a token", healed["access_token"].as_str().unwrap());

    // Everything that goes wrong, here and at WeChat.
    answers.push(server.get("/v1/apps/wx3/token", &key).await);
    answers.push(server.get("/v1/apps/nowhere/token", &key).await);
    answers.push(server.get("/v1/apps/one/users/oFollower", &key).await);
    answers.push(server.get("/v1/apps/one/users/oNobody", &key).await);
    answers.push(server.get("/v1/apps/one/token", &format!("{key}x")).await);
    answers.push(server.post("/v1/apps/one/token/report", &key, &json!({"x": SECRET})).await);
    for fault in ["reset_before", "truncated_body", "bad_gateway", "empty_body"] {
        sim.control("/sim/faults", &json!({"kind": fault, "count": 2, "path": "/cgi-bin/*"})).await;
        answers.push(server.get("/v1/apps/one/users/oFollower", &key).await);
        canaries.saw("user get", &folder.xinfu(&["user", "get", "wx1", "oFollower"]).await);
    }
    for (status, answer) in answers {
        canaries.seen.push((format!("an answer {status}"), answer.to_string().into_bytes()));
    }
    folder.write("wx3.secret", SECRET);
    let declared = "[[apps]]\nappid = \"wx4\"\nsecret_file = \"wx3.secret\"\n";
    folder.write("apps.toml", declared);
    folder.write("broken.toml", &format!("{declared}alias = 3\nsecret = \"{SECRET}\"\n"));
    for args in [
        vec!["app", "list"],
        vec!["app", "list", "--json"],
        vec!["app", "show", "wx3", "--json"],
        vec!["app", "show", "one"],
        vec!["key", "list", "--all"],
        vec!["key", "list", "--json"],
        vec!["token", "status"],
        vec!["token", "status", "--json"],
        vec!["token", "refresh", "one"],
        vec!["token", "refresh", "wx3"],
        vec!["token", "refresh", "one", "--kill-leaked", "--yes"],
        vec!["token", "get", "wx3"],
        vec!["app", "set-secret", "wx3", "--secret-file", "wx3.secret"],
        vec!["app", "apply", "apps.toml"],
        vec!["app", "apply", "broken.toml"],
        vec!["audit"],
        vec!["audit", "--json"],
        vec!["user", "get", "one", "oFollower"],
        vec!["doctor"],
        vec!["check-config"],
        vec!["rekey"],
        vec!["key", "revoke", "all"],
        vec!["app", "remove", "wx2", "--yes"],
    ] {
        canaries.saw(&args.join(" "), &folder.xinfu(&args).await);
    }
    let got = folder.xinfu(&["token", "get", "one"]).await.ok();
    canaries.hide("a token", got.out.trim());
    canaries.saw_err("token get", &got);

    canaries.saw_stored(&folder, database.as_ref()).await;
    if let Some(database) = &database {
        // What the driver says of a database that lets nobody in.
        database.open(false).await;
        for args in [vec!["app", "list"], vec!["doctor"], vec!["audit"]] {
            canaries.saw(&args.join(" "), &folder.xinfu(&args).await.failed(1));
        }
        for path in ["/v1/apps/one/users/oFollower", "/readyz"] {
            let (status, answer) = server.get(path, &key).await;
            canaries.seen.push((format!("an answer {status}"), answer.to_string().into_bytes()));
        }
        database.open(true).await;
    }
    assert_eq!(server.process.terminate().await, Some(0));
    let log = server.process.err();
    assert!(log.contains("TRACE"), "the log is complete");
    assert_eq!(log.lines().all(|line| line.starts_with('{')), format == "json", "{log}");
    canaries.seen.push(("the server's log".to_owned(), log.into_bytes()));
    canaries.seen.push(("the server's output".to_owned(), server.process.out().into_bytes()));
    let log = sim.process.err();
    canaries.seen.push(("the simulator's log".to_owned(), log.into_bytes()));
    if database.is_none() {
        let closed = std::fs::read(folder.path("xinfu.db")).unwrap();
        canaries.seen.push(("the database, closed".to_owned(), closed));
    }
    canaries.check();
}

/// A simulated WeChat in this process: what it gave to the server can be looked up in it.
async fn simulator(tasks: &TaskTracker, stop: &CancellationToken) -> (Sim, String) {
    let sim = Sim::new(sim::Options::new(Clock::real(), 7));
    // Each profile that is read renews its web token.
    sim.set_switches(Switches {
        web_token_lifetime_secs: 30,
        refresh_rotates: true,
        login_replaces_session_key: false,
        ..sim.switches()
    });
    sim.add_app(AppSpec::new("wx1", SECRET));
    sim.add_app(AppSpec { kind: AppKind::MiniProgram, ..AppSpec::new("wx2", SECRET) });
    sim.add_user(UserSpec::new("wx1", "oUser").with_nickname(NICKNAME)).unwrap();
    sim.add_user(UserSpec::new("wx2", "oUser")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tasks.spawn(sim.clone().serve(listener, None, stop.clone().cancelled_owned()));
    (sim, url)
}

impl Canaries {
    /// Hides the tokens that WeChat gave for the user.
    fn hide_tokens(&mut self, sim: &Sim) {
        for grant in sim.grants_of("wx1", "oUser") {
            self.hide("a web token", grant.web_token);
            self.hide("a refresh token", grant.refresh_token);
        }
    }

    /// A code of the user, hidden.
    fn code(&mut self, sim: &Sim) -> String {
        let code = sim.issue_code("wx1", "oUser", Scope::UserInfo, false).unwrap();
        self.hide("a code", &code);
        code
    }

    fn answered(&mut self, (status, answer): (u16, Value)) {
        self.seen.push((format!("an answer {status}"), answer.to_string().into_bytes()));
    }
}

/// Sends the user to WeChat, wrongly and rightly, and again after they took back what they
/// authorised. State and redirect URI are told in the right answers, and stand nowhere else.
async fn check_pages(canaries: &mut Canaries, server: &Server, key: &str, sim: &Sim) {
    let back = format!("https://shop.example/back?return={RETURN_KEY}");
    canaries.hide("a state", STATE);
    canaries.hide("what a redirect URI carries", RETURN_KEY);
    let page = "/v1/apps/one/oauth/authorize-url";
    for wrong in [
        json!({"redirect_uri": back, "state": STATE, "scope": "snsapi_login"}),
        json!({"redirect_uri": back, "state": format!("{STATE}-")}),
        json!({"redirect_uri": back, "state": [STATE]}),
        json!({"redirect_uri": back, "state": STATE, "scope": STATE}),
        json!({"redirect_uri": format!("ftp{back}"), "state": STATE}),
        json!({"redirect_uri": [back], "state": STATE}),
    ] {
        let (status, answer) = server.post(page, key, &wrong).await;
        assert_eq!(status, 400, "{answer}");
        canaries.answered((status, answer));
    }
    let wish = json!({"redirect_uri": back, "state": STATE, "scope": "snsapi_userinfo"});
    let (status, answer) = server.post(page, key, &wish).await;
    assert_eq!((status, &answer["state"]), (200, &json!(STATE)), "{answer}");
    assert!(answer["url"].as_str().unwrap().contains(RETURN_KEY), "{answer}");

    // Where the user came back to is kept with the grant.
    let code = canaries.code(sim);
    let exchange = "/v1/apps/one/oauth/exchange";
    let (status, answer) = server.post(exchange, key, &json!({"code": code})).await;
    assert_eq!(status, 200, "{answer}");
    canaries.answered((status, answer));
    canaries.hide_tokens(sim);
    sim.revoke_grant("wx1", "oUser", Revocation::Revoked).unwrap();
    let profile = "/v1/apps/one/grants/oUser/profile?fresh=true";
    let query = format!("redirect_uri=https%3A%2F%2Fshop.example%2Fback%3Freturn%3D{RETURN_KEY}");
    for url in [profile.to_owned(), format!("{profile}&{query}")] {
        let (status, answer) = server.get(&url, key).await;
        assert_eq!(status, 409, "{answer}");
        assert_eq!(answer["type"], "urn:xinfu:problem:reauthorize", "{answer}");
        canaries.hide("a state", answer["state"].as_str().unwrap());
    }
}

async fn check_logins(format: &str, kept: Kept) {
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let (sim, wechat) = simulator(&tasks, &stop).await;
    let mut folder = Folder::ready_for(&wechat).await;
    folder.set("XINFU_LOG", "trace");
    folder.set("XINFU_LOG_FORMAT", format);
    let mut canaries = Canaries { secrets: Vec::new(), seen: Vec::new() };
    let database = kept.set_up(&mut folder, &mut canaries).await;
    canaries.hide("the AppSecret", SECRET);
    canaries.hide("a binding", BINDING);
    canaries.hide("the nickname", NICKNAME);
    canaries.saw("app add", &folder.add_app("wx1", SECRET, &["--alias", "one"]).await.ok());
    let kind = ["--kind", "mini-program"];
    canaries.saw("app add", &folder.add_app("wx2", SECRET, &kind).await.ok());
    let key = folder.add_key(&["all", "--everything"]).await;
    canaries.hide("the client key", &key);
    let mut server = folder.serve().await;
    let exchange = "/v1/apps/one/oauth/exchange";

    let body = json!({"code": canaries.code(&sim), "binding": BINDING});
    for _ in 0..2 {
        let (status, answer) = server.post(exchange, &key, &body).await;
        assert_eq!(status, 200, "{answer}");
        canaries.answered((status, answer));
    }
    canaries.hide_tokens(&sim);
    let stranger = json!({"code": body["code"], "binding": format!("{BINDING}x")});
    canaries.answered(server.post(exchange, &key, &stranger).await);
    for wrong in [
        json!({"code": format!("{} ", canaries.code(&sim))}),
        json!({"code": canaries.code(&sim), "binding": [BINDING]}),
        json!({"code": [canaries.code(&sim)], "binding": BINDING}),
        json!({"code": canaries.code(&sim), BINDING: 1}),
        json!({"code": canaries.code(&sim), "redirect_uri": format!("/{BINDING}")}),
    ] {
        let (status, answer) = server.post(exchange, &key, &wrong).await;
        assert_eq!(status, 400, "{answer}");
        // The name of a field that is not known is told, and one who puts a secret there told it.
        if wrong.get(BINDING).is_none() {
            canaries.answered((status, answer));
        }
    }
    let code = canaries.code(&sim);
    canaries.answered(server.get(&format!("{exchange}?code={code}"), &key).await);
    let profile = "/v1/apps/one/grants/oUser/profile?fresh=true";
    let (status, answer) = server.get(profile, &key).await;
    assert_eq!((status, &answer["nickname"]), (200, &json!(NICKNAME)), "{answer}");
    canaries.hide_tokens(&sim);

    // Everything that goes wrong at WeChat.
    for kind in [
        FaultKind::Errcode { code: 40029, ip: None, message: None },
        FaultKind::Errcode { code: 40125, ip: None, message: None },
        FaultKind::ResetAfter {},
        FaultKind::TruncatedBody {},
        FaultKind::BadGateway { processed: true },
    ] {
        let fault = sim.set_fault(Fault::new(kind).on("/sns/*"));
        let body = json!({"code": canaries.code(&sim), "binding": BINDING});
        canaries.answered(server.post(exchange, &key, &body).await);
        canaries.answered(server.get(profile, &key).await);
        let js_code = sim.issue_js_code("wx2", "oUser").unwrap();
        canaries.hide("a js_code", &js_code);
        let body = json!({"js_code": js_code, "binding": BINDING});
        canaries.answered(server.post("/v1/apps/wx2/mini/login", &key, &body).await);
        sim.remove_fault(fault);
        canaries.hide_tokens(&sim);
    }

    check_pages(&mut canaries, &server, &key, &sim).await;

    let js_code = sim.issue_js_code("wx2", "oUser").unwrap();
    canaries.hide("a js_code", &js_code);
    let (status, login) =
        server.post("/v1/apps/wx2/mini/login", &key, &json!({"js_code": js_code})).await;
    assert_eq!(status, 200, "{login}");
    let session = login["session"].as_str().unwrap();
    canaries.hide("a session", session);
    let js_code = sim.issue_js_code("wx2", "oUser").unwrap();
    let query = "grant_type=authorization_code&appid=wx2&secret=canary%2BSecret%2Fone%3D0123456789";
    let url = format!("{wechat}/sns/jscode2session?{query}&js_code={js_code}");
    let (_, told) = http("GET", &url, None, None).await.unwrap();
    canaries.hide("the session key", told["session_key"].as_str().unwrap());
    let sealed = sim.encrypt_for("wx2", "oUser", Map::new()).unwrap();
    for (iv, status) in [(&*sealed.iv, 200), ("AAAA", 400)] {
        let body = json!({"session": session, "encryptedData": sealed.encrypted_data, "iv": iv});
        let answer = server.post("/v1/apps/wx2/mini/decrypt", &key, &body).await;
        assert_eq!(answer.0, status, "{}", answer.1);
        canaries.answered(answer);
    }
    let body = json!({
        "session": session, "rawData": sealed.raw_data, "signature": sealed.signature,
    });
    canaries.answered(server.post("/v1/apps/wx2/mini/check-signature", &key, &body).await);
    canaries.answered(server.get("/v1/apps/one/grants/oUser", &key).await);

    for args in [
        vec!["grant", "list", "one"],
        vec!["grant", "list", "one", "--json"],
        vec!["grant", "show", "one", "oUser"],
        vec!["rekey"],
    ] {
        canaries.saw(&args.join(" "), &folder.xinfu(&args).await.ok());
    }
    canaries.saw_stored(&folder, database.as_ref()).await;
    for args in [vec!["grant", "remove", "one", "oUser"], vec!["audit", "--json"]] {
        canaries.saw(&args.join(" "), &folder.xinfu(&args).await.ok());
    }
    assert_eq!(server.process.terminate().await, Some(0));
    let log = server.process.err();
    assert!(log.contains("TRACE"), "the log is complete");
    canaries.seen.push(("the server's log".to_owned(), log.into_bytes()));
    canaries.check();
    stop.cancel();
    tasks.close();
    tasks.wait().await;
}

#[tokio::test]
async fn no_secret_of_a_login_is_seen_in_logs_for_people() {
    check_logins("human", Kept::Sqlite).await;
}

#[tokio::test]
async fn no_secret_of_a_login_is_seen_in_logs_for_machines() {
    check_logins("json", Kept::Sqlite).await;
}

#[tokio::test]
async fn no_secret_is_seen_in_logs_for_people() {
    check_format("human", Kept::Sqlite).await;
}

#[tokio::test]
async fn no_secret_is_seen_in_logs_for_machines() {
    check_format("json", Kept::Sqlite).await;
}

#[tokio::test]
async fn no_secret_is_seen_of_a_server_on_postgres_with_redis() {
    check_format("json", Kept::Postgres).await;
}

#[tokio::test]
async fn no_secret_of_a_login_is_seen_on_postgres_with_redis() {
    check_logins("human", Kept::Postgres).await;
}

#[test]
fn the_forms_find_what_they_should() {
    let forms = forms(SECRET.as_bytes());
    let has = |text: &str| forms.iter().any(|form| form == text.as_bytes());
    assert!(has("canary%2BSecret%2Fone%3D0123456789"));
    assert!(has("63616e6172792b5365637265742f6f6e653d30313233343536373839"));
}
