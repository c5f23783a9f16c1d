//! The rules of web tokens and refresh tokens over random histories.

use proptest::prelude::*;
use sim::{Revocation, Scope, TokenState, UserSpec};

use crate::harness::{APP, SECRET, World, pass};

const USER: &str = "oUser";
const REFRESH_LIFE: i64 = 30 * 86_400;

#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    LogIn,
    /// Each with the number of a login.
    Replay(usize),
    Refresh(usize),
    Use(usize),
    Revoke,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0u64..400).prop_map(Step::Pass),
        2 => (6_800u64..7_400).prop_map(Step::Pass),
        1 => (0u64..20 * 86_400).prop_map(Step::Pass),
        3 => Just(Step::LogIn),
        2 => any::<usize>().prop_map(Step::Replay),
        5 => any::<usize>().prop_map(Step::Refresh),
        5 => any::<usize>().prop_map(Step::Use),
        1 => Just(Step::Revoke),
    ];
    proptest::collection::vec(step, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn grants_keep_their_rules(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(check(steps));
    }
}

/// What the answers so far say of one login.
struct Login {
    code: String,
    at: i64,
    web: String,
    web_expires: i64,
    web_ended: bool,
    refresh: String,
    ended: bool,
}

async fn check(steps: Vec<Step>) {
    let world = World::new().await;
    world.sim.add_user(UserSpec::new(APP, USER)).unwrap();
    let exchange = async |code: &str| {
        let query = format!("appid={APP}&secret={SECRET}&code={code}");
        world.get(&format!("/sns/oauth2/access_token?{query}&grant_type=authorization_code")).await
    };
    let mut logins: Vec<Login> = Vec::new();
    for step in steps {
        let now = world.sim.now().as_secs();
        let many = logins.len().max(1);
        match step {
            Step::Pass(seconds) => pass(seconds).await,
            Step::LogIn => {
                let code = world.sim.issue_code(APP, USER, Scope::UserInfo, false).unwrap();
                let answer = exchange(&code).await;
                logins.push(Login {
                    code,
                    at: now,
                    web: answer.token(),
                    web_expires: now + 7200,
                    web_ended: false,
                    refresh: answer.json()["refresh_token"].as_str().unwrap().to_owned(),
                    ended: false,
                });
            }
            Step::Replay(which) => {
                let Some(login) = logins.get(which % many) else { continue };
                let code = if now < login.at + 300 { 40163 } else { 40029 };
                assert_eq!(exchange(&login.code).await.errcode(), code);
            }
            Step::Refresh(which) => {
                let Some(login) = logins.get_mut(which % many) else { continue };
                let query = format!("appid={APP}&grant_type=refresh_token");
                let target =
                    format!("/sns/oauth2/refresh_token?{query}&refresh_token={}", login.refresh);
                let answer = world.get(&target).await;
                if now >= login.at + REFRESH_LIFE {
                    assert_eq!(answer.errcode(), 42002);
                } else if login.ended {
                    assert_eq!(answer.errcode(), 42007);
                } else {
                    let live = now < login.web_expires;
                    assert_eq!(answer.token() == login.web, live);
                    assert_eq!(answer.expires_in(), 7200);
                    login.web = answer.token();
                    login.web_expires = now + 7200;
                }
            }
            Step::Use(which) => {
                let Some(login) = logins.get(which % many) else { continue };
                let target = format!("/sns/userinfo?access_token={}&openid={USER}", login.web);
                let (code, state) = match login {
                    Login { web_ended: true, .. } => (40001, TokenState::Superseded),
                    Login { web_expires, .. } if now >= *web_expires => {
                        (42001, TokenState::Expired)
                    }
                    _ => (0, TokenState::Live),
                };
                assert_eq!(world.get(&target).await.errcode(), code);
                assert_eq!(world.sim.web_token_state(APP, &login.web), state);
            }
            Step::Revoke => {
                world.sim.revoke_grant(APP, USER, Revocation::Revoked).unwrap();
                for login in &mut logins {
                    login.ended |= now < login.at + REFRESH_LIFE;
                    login.web_ended |= now < login.web_expires;
                }
            }
        }
        let grants = world.sim.grants_of(APP, USER);
        assert_eq!(grants.len(), logins.len());
        for (grant, login) in grants.iter().zip(&logins) {
            assert_eq!((&grant.web_token, &grant.refresh_token), (&login.web, &login.refresh));
            assert_eq!(grant.web_expires.as_secs(), login.web_expires);
            assert_eq!(grant.ended.is_some(), login.ended);
        }
    }
}
