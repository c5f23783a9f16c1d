//! Mini programs: the session key signs and encrypts, and never leaves.

use broker::{ExchangeError, MiniError, MiniLogin, Proof, app::AppKind};
use serde_json::{Map, Value, json};
use sim::{EncryptedData, UserSpec};
use wechat::{AuthCode, Undecryptable};

use crate::harness::{APP, Backend, Desk, OPENID, UNIONID, secs};

const LOGIN: &str = "/sns/jscode2session";

async fn desk(backend: Backend) -> Desk {
    Desk::of_kind(backend, AppKind::MiniProgram).await
}

async fn log_in(desk: &Desk, openid: &str) -> MiniLogin {
    let code = AuthCode::new(desk.world.sim.issue_js_code(APP, openid).unwrap());
    exchange(desk, &code, Proof::Binding("b")).await.unwrap()
}

async fn exchange(
    desk: &Desk,
    code: &AuthCode,
    proof: Proof<'_>,
) -> Result<MiniLogin, ExchangeError> {
    desk.broker().mini_login(&desk.entry, &desk.key, code, proof).await
}

fn encrypted(desk: &Desk, openid: &str, data: Value) -> EncryptedData {
    let Value::Object(data) = data else { panic!("{data} is no object") };
    desk.world.sim.encrypt_for(APP, openid, data).unwrap()
}

async fn decrypt(
    desk: &Desk,
    session: &str,
    data: &EncryptedData,
) -> Result<Map<String, Value>, MiniError> {
    desk.broker().mini_decrypt(&desk.entry, session, &data.iv, &data.encrypted_data).await
}

#[tokio::test(start_paused = true)]
async fn a_login_opens_what_the_mini_program_reads() {
    for backend in [Backend::Memory, Backend::Sqlite] {
        let desk = desk(backend).await;
        let login = log_in(&desk, OPENID).await;
        assert!(login.session.starts_with("ms_") && login.session.len() == 35);
        assert_eq!(login.openid.as_str(), OPENID);
        assert_eq!(login.unionid.as_ref().map(|it| it.as_str()), Some(UNIONID));
        assert!(!format!("{login:?}").contains(&login.session));

        let data = encrypted(&desk, OPENID, json!({"openId": OPENID, "nickName": "微信 👋"}));
        let opened = decrypt(&desk, &login.session, &data).await.unwrap();
        assert_eq!(
            (&opened["nickName"], &opened["watermark"]["appid"]),
            (&json!("微信 👋"), &json!(APP))
        );

        let check = async |raw: &str, signature: &str| {
            let broker = desk.broker();
            broker.mini_is_signed(&desk.entry, &login.session, raw, signature).await.unwrap()
        };
        assert!(check(&data.raw_data, &data.signature).await);
        assert!(!check(&format!("{} ", data.raw_data), &data.signature).await);
        assert!(!check(&data.raw_data, "00").await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_js_code_is_exchanged_once() {
    let desk = desk(Backend::Memory).await;
    let code = AuthCode::new(desk.world.sim.issue_js_code(APP, OPENID).unwrap());
    let first = exchange(&desk, &code, Proof::Binding("b")).await.unwrap();
    assert_eq!(exchange(&desk, &code, Proof::Binding("b")).await, Ok(first));
    for proof in [Proof::None, Proof::Binding("c"), Proof::IdempotencyKey("b")] {
        assert_eq!(exchange(&desk, &code, proof).await, Err(ExchangeError::CodeUsed));
    }
    assert_eq!(desk.world.calls(LOGIN), 1);
}

#[tokio::test(start_paused = true)]
async fn a_session_is_of_one_user_and_ends() {
    let desk = desk(Backend::Memory).await;
    let other = "oUser0000000000000000000002b";
    desk.world.sim.add_user(UserSpec::new(APP, other)).unwrap();
    let (one, two) = (log_in(&desk, OPENID).await, log_in(&desk, other).await);
    let data = encrypted(&desk, OPENID, json!({"openId": OPENID}));
    let refused = decrypt(&desk, &two.session, &data).await;
    assert_eq!(refused, Err(MiniError::Undecryptable(Undecryptable::Sealed)));
    let lies = encrypted(&desk, OPENID, json!({"openId": other}));
    assert_eq!(decrypt(&desk, &one.session, &lies).await, Err(MiniError::OtherUser));
    let none = decrypt(&desk, "ms_nothing", &data).await;
    assert_eq!(none, Err(MiniError::NoSession));

    // A later login of the user has another key; what is encrypted with it does not open here.
    let later = log_in(&desk, OPENID).await;
    let data = encrypted(&desk, OPENID, json!({"openId": OPENID}));
    assert!(decrypt(&desk, &later.session, &data).await.is_ok());
    let refused = decrypt(&desk, &one.session, &data).await;
    assert_eq!(refused, Err(MiniError::Undecryptable(Undecryptable::Sealed)));

    let left = later.expires_at.as_secs() - desk.broker().now().as_secs();
    assert_eq!(left, 3 * 86_400);
    desk.world.pass(secs(3 * 86_400 - 1)).await;
    assert!(decrypt(&desk, &later.session, &data).await.is_ok());
    desk.world.pass(secs(2)).await;
    assert_eq!(decrypt(&desk, &later.session, &data).await, Err(MiniError::NoSession));
}

#[tokio::test(start_paused = true)]
async fn other_apps_have_no_such_logins() {
    let desk = Desk::new(Backend::Memory).await;
    let refused = exchange(&desk, &AuthCode::new("c"), Proof::None).await;
    assert!(matches!(refused, Err(ExchangeError::WrongKind(_))), "{refused:?}");
    let signed = desk.broker().mini_is_signed(&desk.entry, "ms_x", "", "").await;
    assert!(matches!(signed, Err(MiniError::WrongKind(_))), "{signed:?}");
    assert_eq!(desk.world.calls(LOGIN), 0);
}
