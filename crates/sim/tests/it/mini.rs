//! Mini programs: `js_code`, session keys, encrypted data.

use aws_lc_rs::{
    cipher::{AES_128, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey},
    digest::{SHA1_FOR_LEGACY_USE_ONLY, digest},
    iv::FixedLength,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use sim::{AppKind, ControlError, Revocation, Scope, Switches, UserSpec};

use crate::harness::{APP, Answer, NOON, OTHER, SECRET, World, pass};

async fn world() -> World {
    let world = World::new().await;
    world.sim.update_app(APP, |app| app.kind = AppKind::MiniProgram).unwrap();
    world.sim.add_user(UserSpec::new(APP, "oUser").with_unionid("oUnion")).unwrap();
    world.sim.add_user(UserSpec::new(APP, "oSecond")).unwrap();
    world
}

async fn session(world: &World, code: &str) -> Answer {
    let query = format!("appid={APP}&secret={SECRET}&js_code={code}&grant_type=authorization_code");
    world.get(&format!("/sns/jscode2session?{query}")).await
}

fn js_code(world: &World, openid: &str) -> String {
    world.sim.issue_js_code(APP, openid).unwrap()
}

fn key_of(answer: &Answer) -> String {
    answer.json()["session_key"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_js_code_is_traded_once_for_a_session() {
    let world = world().await;
    let code = js_code(&world, "oUser");
    let answer = session(&world, &code).await;
    let key = key_of(&answer);
    assert_eq!(
        answer.text(),
        format!(r#"{{"session_key":"{key}","openid":"oUser","unionid":"oUnion"}}"#)
    );
    assert_eq!(STANDARD.decode(&key).unwrap().len(), 16);
    assert_eq!(answer.header("content-type"), Some("text/plain"));
    assert_eq!(session(&world, &code).await.errcode(), 40163);
    let second = session(&world, &js_code(&world, "oSecond")).await.json();
    assert_eq!(second.get("unionid"), None);
    assert_ne!(second["session_key"], key);

    let log = world.sim.calls().log;
    assert!(log[0].code.is_some() && log[0].code == log[1].code && log[0].answered.is_none());
    assert!(!serde_json::to_string(&log).unwrap().contains(&key));
    for (lived, errcode) in [(299, 0), (300, 40029)] {
        let code = js_code(&world, "oUser");
        pass(lived).await;
        assert_eq!(session(&world, &code).await.errcode(), errcode);
    }
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn codes_of_the_two_kinds_do_not_mix() {
    let world = world().await;
    let code = js_code(&world, "oUser");
    let query = format!("appid={APP}&secret={SECRET}&code={code}&grant_type=authorization_code");
    let answer = world.get(&format!("/sns/oauth2/access_token?{query}")).await;
    assert_eq!(answer.errcode(), 40029);
    assert_eq!(session(&world, &code).await.errcode(), 0, "it was not used up");
    world.sim.add_user(UserSpec::new(OTHER, "oWeb")).unwrap();
    let web = world.sim.issue_code(OTHER, "oWeb", Scope::Base, false).unwrap();
    assert_eq!(session(&world, &web).await.errcode(), 40029);
    for (query, code) in [
        ("js_code=x".to_owned(), 41002),
        (format!("appid={APP}"), 41004),
        (format!("appid={APP}&secret=x"), 40125),
        (format!("appid={APP}&secret={SECRET}&code=x"), 41008),
        (format!("appid={APP}&secret={SECRET}&js_code=x"), 40002),
    ] {
        let answer = world.get(&format!("/sns/jscode2session?{query}")).await;
        assert_eq!(answer.errcode(), code, "{query}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_user_has_100_sessions_a_minute() {
    let world = world().await;
    for _ in 0..100 {
        assert_eq!(session(&world, &js_code(&world, "oUser")).await.errcode(), 0);
    }
    let code = js_code(&world, "oUser");
    let refused = session(&world, &code).await;
    assert_eq!(refused.errcode(), 45011);
    let begin = "api minute-quota reach limit, must slower, retry next minute, rid: ";
    assert!(refused.errmsg().starts_with(begin), "{}", refused.errmsg());
    assert_eq!(session(&world, &js_code(&world, "oSecond")).await.errcode(), 0);
    pass(60).await;
    assert_eq!(session(&world, &code).await.errcode(), 0, "it was not used up");
}

#[tokio::test(start_paused = true)]
async fn codes_of_another_app_count_for_nobody() {
    let world = world().await;
    world.sim.update_app(OTHER, |app| app.kind = AppKind::MiniProgram).unwrap();
    world.sim.add_user(UserSpec::new(OTHER, "oUser")).unwrap();
    let foreign = world.sim.issue_js_code(OTHER, "oUser").unwrap();
    for _ in 0..101 {
        assert_eq!(session(&world, &foreign).await.errcode(), 40029);
    }
    assert_eq!(session(&world, &js_code(&world, "oUser")).await.errcode(), 0);
}

#[tokio::test(start_paused = true)]
async fn no_authorisation_stands_behind_a_js_code() {
    let world = world().await;
    let code = js_code(&world, "oUser");
    world.sim.revoke_grant(APP, "oUser", Revocation::PasswordChanged).unwrap();
    assert_eq!(session(&world, &code).await.errcode(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_login_replaces_the_session_key_or_not() {
    let world = world().await;
    let first = key_of(&session(&world, &js_code(&world, "oUser")).await);
    let second = key_of(&session(&world, &js_code(&world, "oUser")).await);
    assert_ne!(first, second);
    world.sim.set_switches(Switches { login_replaces_session_key: false, ..Switches::default() });
    assert_eq!(key_of(&session(&world, &js_code(&world, "oUser")).await), second);
    world.sim.reset();
    assert!(world.sim.encrypt_for(APP, "oUser", serde_json::Map::new()).is_err());
}

#[tokio::test(start_paused = true)]
async fn data_is_encrypted_with_the_session_key() {
    let world = world().await;
    let data = json!({ "phoneNumber": "13800000000", "nickName": "小明" });
    let data = data.as_object().unwrap();
    let no_session = Err(ControlError::NoSession("oUser".to_owned()));
    assert_eq!(world.sim.encrypt_for(APP, "oUser", data.clone()), no_session);
    let key = key_of(&session(&world, &js_code(&world, "oUser")).await);
    let sent = world.sim.encrypt_for(APP, "oUser", data.clone()).unwrap();

    let signed = format!("{}{key}", sent.raw_data);
    let sum = digest(&SHA1_FOR_LEGACY_USE_ONLY, signed.as_bytes());
    let hex: String = sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(sent.signature, hex);
    assert_eq!(serde_json::from_str::<Value>(&sent.raw_data).unwrap(), Value::Object(data.clone()));

    let bytes = |text: &str| STANDARD.decode(text).unwrap();
    let key = UnboundCipherKey::new(&AES_128, &bytes(&key)).unwrap();
    let iv: [u8; 16] = bytes(&sent.iv).try_into().unwrap();
    let mut encrypted = bytes(&sent.encrypted_data);
    let plain = PaddedBlockDecryptingKey::cbc_pkcs7(key)
        .unwrap()
        .decrypt(&mut encrypted, DecryptionContext::Iv128(FixedLength::from(&iv)))
        .unwrap();
    assert_eq!(
        serde_json::from_slice::<Value>(plain).unwrap(),
        json!({
            "phoneNumber": "13800000000", "nickName": "小明",
            "watermark": { "timestamp": NOON, "appid": APP },
        })
    );
}
