//! P5 and P6: a kill at any moment loses no login that was acknowledged and no grant, and no code is
//! exchanged twice for it.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    kill::Chance,
    process::{Folder, Server, SimProcess, eventually},
};

const APP: &str = "wx1";
const SECRET: &str = "0123456789abcdef0123456789abcdef";
/// So many kills at least; more, up to a limit, until they have hit enough exchanges.
const ROUNDS: usize = 12;
const MOST_ROUNDS: usize = 40;
const HIT: usize = 3;
const USERS: usize = 6;

/// A login that was begun: its code, the browser's cookie, and what came of it.
struct Login {
    user: usize,
    code: String,
    answer: Option<Value>,
}

impl Login {
    fn body(&self) -> Value {
        json!({"code": self.code, "binding": format!("cookie of {}", self.code)})
    }
}

fn openid(user: usize) -> String {
    format!("oUser{user:023}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_loses_no_login_and_no_grant_and_repeats_no_code() {
    let mut chance = Chance::new();
    let sim = SimProcess::start(&[(APP, SECRET)]).await;
    let users: Vec<_> = (0..USERS)
        .map(|user| json!({"appid": APP, "openid": openid(user), "nickname": "n"}))
        .collect();
    sim.control("/sim/users", &json!(users)).await;
    // Web tokens live for a second and everything is slow, so that many kills hit something.
    sim.control("/sim/switches", &json!({"web_token_lifetime_secs": 1})).await;
    let slow = json!({"kind": "latency_after", "millis": 40, "path": "/sns/*"});
    sim.control("/sim/faults", &slow).await;
    let folder = Folder::ready(&sim).await;
    folder.add_app(APP, SECRET, &[]).await.ok();
    let key = folder.add_key(&["h5", "--everything"]).await;

    let mut logins: Vec<Login> = Vec::new();
    let (mut hit, mut rounds) = (0, 0);
    while rounds < ROUNDS || (hit < HIT && rounds < MOST_ROUNDS) {
        rounds += 1;
        let mut server = folder.serve().await;
        let moment = Duration::from_millis(chance.below(900));
        let begun = tokio::sync::Mutex::new(&mut logins);
        let work = (0..USERS).map(async |user| {
            loop {
                let body = json!({"openid": openid(user), "scope": "snsapi_userinfo"});
                let issued = sim.control(&format!("/sim/apps/{APP}/codes"), &body).await;
                let code = issued["code"].as_str().unwrap().to_owned();
                let login = Login { user, code, answer: None };
                let body = login.body();
                let place = {
                    let mut begun = begun.lock().await;
                    begun.push(login);
                    begun.len() - 1
                };
                let path = format!("/v1/apps/{APP}/oauth/exchange");
                let (status, answer) = server.post(&path, &key, &body).await;
                assert_eq!(status, 200, "{answer}; {chance}");
                begun.lock().await[place].answer = Some(answer);
                for _ in 0..4 {
                    read_profile(&server, &key, user).await;
                }
            }
        });
        let work = futures_util::future::join_all(work);
        assert!(tokio::time::timeout(moment, work).await.is_err());
        server.process.kill().await;
        hit = logins.iter().filter(|login| login.answer.is_none()).count();
        chance.next();
    }

    // What a kill left unanswered: told again, or perhaps spent; and never to another browser.
    let server = folder.serve().await;
    let left = logins.iter_mut().filter(|login| login.answer.is_none());
    let again = left.map(async |login| {
        login.answer = Some(after_a_kill(&server, &key, login).await);
    });
    futures_util::future::join_all(again).await;

    // Each login that was acknowledged has a grant that still reads the profile.
    let known: BTreeMap<_, _> = logins
        .iter()
        .filter(|login| login.answer.as_ref().is_some_and(|answer| answer["openid"].is_string()))
        .map(|login| (login.user, login))
        .collect();
    assert!(!known.is_empty(), "{chance}");
    for (user, login) in &known {
        assert_eq!(login.answer.as_ref().unwrap()["openid"], openid(*user).as_str(), "{chance}");
        let read = eventually(Duration::from_secs(30), || async {
            let (status, _) = read_profile(&server, &key, *user).await;
            (status == 200).then_some(())
        });
        assert!(read.await.is_some(), "no profile of user {user}; {chance}");
    }

    let mut codes = HashSet::new();
    let log = sim.log().await;
    let exchanges = log.iter().filter(|call| call["path"] == "/sns/oauth2/access_token");
    for call in exchanges {
        assert!(codes.insert(call["code"].to_string()), "twice: {call}; {chance}");
    }
    println!("{} codes, {hit} of them hit by {rounds} kills; {chance}", codes.len());
    assert!(hit >= HIT, "{hit} of {rounds} kills hit an exchange; {chance}");
}

/// Brings a code again that a kill left unanswered.
async fn after_a_kill(server: &Server, key: &str, login: &Login) -> Value {
    let path = format!("/v1/apps/{APP}/oauth/exchange");
    let other = json!({"code": login.code, "binding": "another cookie"});
    // The claim of a server that died is waited for until its deadline, longer than a caller here
    // waits for an answer.
    let answered = eventually(Duration::from_secs(60), || async {
        let (status, answer) = server.post(&path, key, &login.body()).await;
        (status != 0).then_some((status, answer))
    });
    let (status, first) = answered.await.expect("an answer");
    let maybe_spent =
        status == 409 && first["type"].as_str().unwrap().ends_with("code-maybe-spent");
    assert!(status == 200 || maybe_spent, "{status} {first}");
    let (status, used) = server.post(&path, key, &other).await;
    assert!(status == 409 && used["type"].as_str().unwrap().ends_with("code-used"), "{used}");
    let (_, again) = server.post(&path, key, &login.body()).await;
    assert_eq!(first["type"], again["type"]);
    assert_eq!(first["openid"], again["openid"]);
    first
}

async fn read_profile(server: &Server, key: &str, user: usize) -> (u16, Value) {
    let path = format!("/v1/apps/{APP}/grants/{}/profile?fresh=true", openid(user));
    server.get(&path, key).await
}
