//! Web logins: codes, web tokens, refresh tokens, profiles.

use serde_json::json;
use sim::{AppKind, AppSpec, ControlError, Revocation, Scope, Switches, TokenState, UserSpec};

use crate::harness::{APP, Answer, OTHER, SECRET, World, pass};

/// A user of the app, with a unionid.
const USER: &str = "oUser0000000000000000000000a";
const DAY: u64 = 86_400;

async fn world_with(switches: Switches) -> World {
    let world = World::with(switches).await;
    let user = UserSpec::new(APP, USER).with_unionid("oUnion").with_nickname("小明\u{8}😀<b>");
    world.sim.add_user(user).unwrap();
    world.sim.add_user(UserSpec::new(OTHER, "oElsewhere")).unwrap();
    world
}

async fn world() -> World {
    world_with(Switches::default()).await
}

async fn exchange(world: &World, code: &str) -> Answer {
    let query = format!("appid={APP}&secret={SECRET}&code={code}&grant_type=authorization_code");
    world.get(&format!("/sns/oauth2/access_token?{query}")).await
}

fn code(world: &World, scope: Scope) -> String {
    world.sim.issue_code(APP, USER, scope, false).unwrap()
}

/// A web token and a refresh token.
async fn log_in(world: &World, scope: Scope) -> (String, String) {
    let answer = exchange(world, &code(world, scope)).await;
    (answer.token(), refresh_token(&answer))
}

fn refresh_token(answer: &Answer) -> String {
    answer.json()["refresh_token"].as_str().unwrap().to_owned()
}

async fn refresh(world: &World, token: &str) -> Answer {
    let query = format!("appid={APP}&grant_type=refresh_token&refresh_token={token}");
    world.get(&format!("/sns/oauth2/refresh_token?{query}")).await
}

async fn userinfo(world: &World, token: &str, openid: &str) -> Answer {
    let target = format!("/sns/userinfo?access_token={token}&openid={openid}&lang=zh_CN");
    world.get(&target).await
}

#[tokio::test(start_paused = true)]
async fn a_code_is_traded_once_for_the_documented_fields() {
    let world = world().await;
    for (scope, unionid) in [(Scope::Base, ""), (Scope::UserInfo, r#","unionid":"oUnion""#)] {
        let code = code(&world, scope);
        let answer = exchange(&world, &code).await;
        let (token, refresh, scope) = (answer.token(), refresh_token(&answer), scope.name());
        assert_eq!(
            answer.text(),
            format!(
                r#"{{"access_token":"{token}","expires_in":7200,"refresh_token":"{refresh}","openid":"{USER}","scope":"{scope}"{unionid}}}"#
            )
        );
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/plain")));
        let again = exchange(&world, &code).await;
        assert_eq!(again.errcode(), 40163);
        assert!(again.errmsg().starts_with("code been used, rid: "), "{}", again.errmsg());
        assert_eq!(again.header("content-type"), Some("text/plain"));
    }
    world.sim.update_app(APP, |app| app.bound = false).unwrap();
    let answer = exchange(&world, &code(&world, Scope::UserInfo)).await.json();
    assert_eq!(answer.get("unionid"), None);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn web_tokens_look_like_those_of_wechat() {
    let world = world().await;
    let (web, refresh) = log_in(&world, Scope::Base).await;
    assert_ne!(web, refresh);
    for token in [web, refresh] {
        assert!((105..=109).contains(&token.len()), "{token}");
        assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
        assert!(token.split_once('_').unwrap().0.parse::<u16>().is_ok());
        assert!(!token.bytes().next_back().unwrap().is_ascii_uppercase(), "no capital tail");
    }
}

#[tokio::test(start_paused = true)]
async fn an_exchange_is_checked_in_the_order_of_wechat() {
    let world = world().await;
    let fresh = code(&world, Scope::Base);
    let of_other = world.sim.issue_code(OTHER, "oElsewhere", Scope::Base, false).unwrap();
    let grant = "grant_type=authorization_code";
    for (query, code, text) in [
        (format!("secret=x&{grant}"), 41002, "appid missing"),
        ("appid=wx0".to_owned(), 40013, "invalid appid"),
        (format!("appid={APP}&code={fresh}"), 41004, "appsecret missing"),
        (format!("appid={APP}&secret=x"), 40125, "invalid appsecret"),
        (format!("appid={APP}&secret={SECRET}"), 41008, "missing code"),
        (format!("appid={APP}&secret={SECRET}&code={fresh}"), 40002, "invalid grant_type"),
        (format!("appid={APP}&secret={SECRET}&code=x&{grant}"), 40029, "invalid code"),
        (format!("appid={APP}&secret={SECRET}&code={of_other}&{grant}"), 40029, "invalid code"),
    ] {
        let answer = world.get(&format!("/sns/oauth2/access_token?{query}")).await;
        assert_eq!(answer.errcode(), code, "{query}");
        let begin = format!("{text}, rid: ");
        assert!(answer.errmsg().starts_with(&begin), "{}", answer.errmsg());
        assert_eq!(answer.header("content-type"), Some("text/plain"));
    }
    for (change, code) in [
        ((|app: &mut AppSpec| app.frozen = true) as fn(&mut AppSpec), 40243),
        (|app| (app.frozen, app.banned) = (false, true), 50007),
        (|app| (app.banned, app.ip_whitelist) = (false, Some(vec![])), 0),
    ] {
        world.sim.update_app(APP, change).unwrap();
        let fresh = self::code(&world, Scope::Base);
        assert_eq!(exchange(&world, &fresh).await.errcode(), code);
    }
    world.sim.set_switches(Switches { sns_ip_whitelist: true, ..Switches::default() });
    let refused = exchange(&world, &fresh).await;
    assert_eq!(refused.errcode(), 40164);
    let begin = "invalid ip 127.0.0.1 ipv6 ::ffff:127.0.0.1, not in whitelist, rid: ";
    assert!(refused.errmsg().starts_with(begin), "{}", refused.errmsg());
    world.sim.set_switches(Switches::default());
    assert_eq!(exchange(&world, &fresh).await.errcode(), 0, "refusals use no code up");
}

#[tokio::test(start_paused = true)]
async fn a_code_lives_300_seconds_and_that_of_a_qr_login_600() {
    let world = world().await;
    for (lived, errcode) in [(299, 0), (300, 40029)] {
        let code = code(&world, Scope::Base);
        pass(lived).await;
        assert_eq!(exchange(&world, &code).await.errcode(), errcode);
    }
    world.sim.set_switches(Switches { expired_code: 42003, ..Switches::default() });
    let expired = code(&world, Scope::Base);
    pass(300).await;
    let answer = exchange(&world, &expired).await;
    assert!(answer.errmsg().starts_with("code expired, rid: "), "{}", answer.errmsg());

    world.sim.update_app(APP, |app| app.kind = AppKind::Website).unwrap();
    for (lived, errcode) in [(599, 0), (600, 42003)] {
        let code = code(&world, Scope::Login);
        pass(lived).await;
        assert_eq!(exchange(&world, &code).await.errcode(), errcode);
    }
    let login = exchange(&world, &code(&world, Scope::Login)).await.json();
    assert_eq!((&login["scope"], &login["unionid"]), (&json!("snsapi_login"), &json!("oUnion")));
}

#[tokio::test(start_paused = true)]
async fn codes_are_issued_for_users_and_scopes_that_exist() {
    let world = world().await;
    let wrong_kind = Err(ControlError::WrongKind(APP.to_owned()));
    let issue = |app, user, scope, snapshot| world.sim.issue_code(app, user, scope, snapshot);
    let unknown_user = Err(ControlError::UnknownUser("oElsewhere".to_owned()));
    assert_eq!(issue("wx0", USER, Scope::Base, false), Err(ControlError::UnknownApp("wx0".into())));
    assert_eq!(issue(APP, "oElsewhere", Scope::Base, false), unknown_user);
    assert_eq!(issue(APP, USER, Scope::Login, false), wrong_kind);
    assert_eq!(issue(APP, USER, Scope::Base, true), wrong_kind);
    assert_eq!(world.sim.issue_js_code(APP, USER), wrong_kind);
    world.sim.update_app(APP, |app| app.kind = AppKind::Website).unwrap();
    assert_eq!(issue(APP, USER, Scope::UserInfo, false), wrong_kind);
}

#[tokio::test(start_paused = true)]
async fn a_live_web_token_is_prolonged_and_a_dead_one_replaced() {
    let world = world().await;
    let (web, refresh_one) = log_in(&world, Scope::UserInfo).await;
    pass(7199).await;
    let answer = refresh(&world, &refresh_one).await;
    assert_eq!(
        answer.text(),
        format!(
            r#"{{"access_token":"{web}","expires_in":7200,"refresh_token":"{refresh_one}","openid":"{USER}","scope":"snsapi_userinfo"}}"#
        )
    );
    pass(7199).await;
    assert_eq!(userinfo(&world, &web, USER).await.errcode(), 0);
    pass(1).await;
    assert_eq!(userinfo(&world, &web, USER).await.errcode(), 42001);
    assert_eq!(world.sim.web_token_state(APP, &web), TokenState::Expired);
    let answer = refresh(&world, &refresh_one).await;
    assert_ne!(answer.token(), web);
    assert_eq!(refresh_token(&answer), refresh_one);
    assert_eq!(userinfo(&world, &answer.token(), USER).await.errcode(), 0);
    assert_eq!(userinfo(&world, &web, USER).await.errcode(), 42001, "it stays dead");
    let grants = world.sim.grants_of(APP, USER);
    assert_eq!((grants.len(), &grants[0].web_token), (1, &answer.token()));
    assert_eq!(grants[0].web_state, TokenState::Live);
    assert_eq!(grants[0].web_expires.secs_since(world.sim.now()), 7200);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_token_lives_30_days_from_the_exchange() {
    let world = world().await;
    let (_, token) = log_in(&world, Scope::Base).await;
    pass(29 * DAY).await;
    assert_eq!(refresh(&world, &token).await.errcode(), 0);
    pass(DAY - 1).await;
    assert_eq!(refresh(&world, &token).await.errcode(), 0);
    pass(1).await;
    let answer = refresh(&world, &token).await;
    assert_eq!(answer.errcode(), 42002);
    assert!(answer.errmsg().starts_with("refresh_token expired, rid: "), "{}", answer.errmsg());
}

#[tokio::test(start_paused = true)]
async fn bad_refreshes_are_refused() {
    let world = world().await;
    let (web, token) = log_in(&world, Scope::Base).await;
    let grant = "grant_type=refresh_token";
    for (query, code) in [
        (format!("refresh_token={token}&{grant}"), 41002),
        ("appid=wx0".to_owned(), 40013),
        (format!("appid={APP}&refresh_token={token}"), 40002),
        (format!("appid={APP}&{grant}"), 41003),
        (format!("appid={APP}&{grant}&refresh_token=x"), 40030),
        (format!("appid={APP}&{grant}&refresh_token={web}"), 40030),
        (format!("appid={OTHER}&{grant}&refresh_token={token}"), 40030),
    ] {
        let answer = world.get(&format!("/sns/oauth2/refresh_token?{query}")).await;
        assert_eq!(answer.errcode(), code, "{query}");
    }
    let switches = Switches { bad_refresh_token_code: 40029, ..Switches::default() };
    world.sim.set_switches(switches);
    assert_eq!(refresh(&world, &web).await.errcode(), 40029);
    world.sim.update_app(APP, |app| app.banned = true).unwrap();
    assert_eq!(refresh(&world, &token).await.errcode(), 50007);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_token_rotates_by_switch() {
    let world = world_with(Switches { refresh_rotates: true, ..Switches::default() }).await;
    let (web, first) = log_in(&world, Scope::Base).await;
    pass(29 * DAY).await;
    let answer = refresh(&world, &first).await;
    let second = refresh_token(&answer);
    assert_ne!(second, first);
    assert_ne!(answer.token(), web);
    assert_eq!(refresh(&world, &first).await.errcode(), 40030);
    let grants = world.sim.grants_of(APP, USER);
    assert_eq!((grants.len(), &grants[0].refresh_token), (1, &second));
    pass(DAY).await;
    assert_eq!(refresh(&world, &second).await.errcode(), 42002, "the 30 days are not renewed");
}

#[tokio::test(start_paused = true)]
async fn a_second_login_leaves_the_first_alone_or_not() {
    let world = world().await;
    let (first, _) = log_in(&world, Scope::UserInfo).await;
    let (second, _) = log_in(&world, Scope::UserInfo).await;
    assert_eq!(world.sim.web_token_state(APP, &first), TokenState::Live);
    world.sim.set_switches(Switches { new_grant_ends_web_tokens: true, ..Switches::default() });
    let (third, _) = log_in(&world, Scope::UserInfo).await;
    for (token, errcode) in [(&first, 40001), (&second, 40001), (&third, 0)] {
        assert_eq!(userinfo(&world, token, USER).await.errcode(), errcode);
    }
}

#[tokio::test(start_paused = true)]
async fn a_user_ends_an_authorisation() {
    for why in [Revocation::Revoked, Revocation::PasswordChanged] {
        let world = world().await;
        let (web, token) = log_in(&world, Scope::UserInfo).await;
        world.sim.revoke_grant(APP, USER, why).unwrap();
        let answer = refresh(&world, &token).await;
        assert_eq!(answer.errcode(), 42007);
        let begin = "access_token and refresh_token exception, rid: ";
        assert!(answer.errmsg().starts_with(begin), "{}", answer.errmsg());
        assert_eq!(userinfo(&world, &web, USER).await.errcode(), 40001);
        assert_eq!(world.sim.web_token_state(APP, &web), TokenState::Superseded);
        assert_eq!(world.sim.grants_of(APP, USER)[0].ended, Some(why));
        let (web, token) = log_in(&world, Scope::UserInfo).await;
        assert_eq!(userinfo(&world, &web, USER).await.errcode(), 0);
        assert_eq!(refresh(&world, &token).await.errcode(), 0);
        assert!(world.sim.revoke_grant(APP, "oElsewhere", why).is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_user_ends_is_said_by_switch() {
    let world = world().await;
    for code in [40001, 42001, 42007] {
        let switches = Switches { ended_web_token_code: code, ..Switches::default() };
        world.sim.set_switches(Switches { new_grant_ends_web_tokens: true, ..switches });
        let (first, _) = log_in(&world, Scope::UserInfo).await;
        let (second, _) = log_in(&world, Scope::UserInfo).await;
        assert_eq!(userinfo(&world, &first, USER).await.errcode(), 40001, "another login ended it");
        world.sim.revoke_grant(APP, USER, Revocation::Revoked).unwrap();
        for token in [&first, &second] {
            assert_eq!(userinfo(&world, token, USER).await.errcode(), code);
            let auth = format!("/sns/auth?access_token={token}&openid={USER}");
            assert_eq!(world.get(&auth).await.errcode(), code);
        }
        assert_eq!(userinfo(&world, "x", USER).await.errcode(), 40001);
        let (third, _) = log_in(&world, Scope::UserInfo).await;
        pass(7200).await;
        world.sim.revoke_grant(APP, USER, Revocation::Revoked).unwrap();
        assert_eq!(userinfo(&world, &third, USER).await.errcode(), 42001, "it was over before");
    }
}

#[tokio::test(start_paused = true)]
async fn a_user_ends_codes_that_were_not_used_yet() {
    let world = world().await;
    world.sim.add_user(UserSpec::new(APP, "oSecond")).unwrap();
    let (used, unused) = (code(&world, Scope::UserInfo), code(&world, Scope::Base));
    let of_second = world.sim.issue_code(APP, "oSecond", Scope::Base, false).unwrap();
    assert_eq!(exchange(&world, &used).await.errcode(), 0);
    world.sim.revoke_grant(APP, USER, Revocation::Revoked).unwrap();
    assert_eq!(exchange(&world, &unused).await.errcode(), 40029);
    assert_eq!(exchange(&world, &used).await.errcode(), 40163);
    assert_eq!(exchange(&world, &of_second).await.errcode(), 0);
    assert_eq!(exchange(&world, &code(&world, Scope::Base)).await.errcode(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_authorisation_ends_at_one_app() {
    let world = world().await;
    world.sim.add_user(UserSpec::new(OTHER, USER)).unwrap();
    let at_other = async |code: &str| {
        let query = format!("appid={OTHER}&secret={SECRET}&code={code}");
        world.get(&format!("/sns/oauth2/access_token?{query}&grant_type=authorization_code")).await
    };
    let issue = || world.sim.issue_code(OTHER, USER, Scope::UserInfo, false).unwrap();
    let (answer, unused) = (at_other(&issue()).await, issue());
    log_in(&world, Scope::UserInfo).await;
    world.sim.revoke_grant(APP, USER, Revocation::Revoked).unwrap();
    assert_eq!(userinfo(&world, &answer.token(), USER).await.errcode(), 0);
    assert_eq!(world.sim.grants_of(OTHER, USER)[0].ended, None);
    assert_eq!(at_other(&unused).await.errcode(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_profile_is_the_documented_one() {
    let world = world().await;
    let (web, _) = log_in(&world, Scope::UserInfo).await;
    let answer = userinfo(&world, &web, USER).await;
    assert_eq!(
        answer.text(),
        format!(
            r#"{{"openid":"{USER}","nickname":"小明\b😀<b>","sex":0,"province":"","city":"","country":"","headimgurl":"","privilege":[],"unionid":"oUnion"}}"#
        )
    );
    assert_eq!(answer.header("content-type"), Some("text/plain"));
    let mut user = UserSpec::new(APP, USER);
    user.headimgurl = "https://thirdwx.qlogo.cn/x/132".to_owned();
    user.privilege = vec!["chinaunicom".to_owned()];
    world.sim.add_user(user).unwrap();
    let profile = userinfo(&world, &web, USER).await.json();
    assert_eq!(profile["headimgurl"], "https://thirdwx.qlogo.cn/x/132");
    assert_eq!(profile["privilege"], json!(["chinaunicom"]));
    assert_eq!(profile.get("unionid"), None);
}

#[tokio::test(start_paused = true)]
async fn a_bad_token_has_no_profile() {
    let world = world().await;
    let (web, refresh) = log_in(&world, Scope::UserInfo).await;
    let (base, _) = log_in(&world, Scope::Base).await;
    let global = world.classic().await;
    assert_eq!(world.get(&format!("/sns/userinfo?openid={USER}")).await.errcode(), 41001);
    assert_eq!(world.get(&format!("/sns/userinfo?access_token={web}")).await.errcode(), 41009);
    for bad in ["x", &refresh, &global] {
        let answer = userinfo(&world, bad, USER).await;
        let begin = "invalid credential, access_token is invalid or not latest, rid: ";
        assert_eq!(answer.errcode(), 40001);
        assert!(answer.errmsg().starts_with(begin), "{}", answer.errmsg());
    }
    let answer = userinfo(&world, &web, "oElsewhere").await;
    assert_eq!(answer.errcode(), 40003);
    assert!(answer.errmsg().starts_with("invalid openid, rid: "), "{}", answer.errmsg());
    let answer = userinfo(&world, &base, USER).await;
    assert_eq!(answer.errcode(), 48001);
    assert!(answer.errmsg().starts_with("api unauthorized, rid: "), "{}", answer.errmsg());
}

#[tokio::test(start_paused = true)]
async fn auth_tells_whether_a_web_token_works() {
    let world = world().await;
    let (web, _) = log_in(&world, Scope::Base).await;
    let auth = async |token: &str, openid: &str| {
        world.get(&format!("/sns/auth?access_token={token}&openid={openid}")).await
    };
    assert_eq!(auth(&web, USER).await.text(), r#"{"errcode":0,"errmsg":"ok"}"#);
    assert_eq!(auth(&web, "oElsewhere").await.errcode(), 40003);
    assert_eq!(auth(&world.classic().await, USER).await.errcode(), 40001);
    assert_eq!(auth("x", USER).await.errcode(), 40001);
    assert_eq!(auth("", USER).await.errcode(), 41001);
    pass(7200).await;
    assert_eq!(auth(&web, USER).await.errcode(), 42001);
}

#[tokio::test(start_paused = true)]
async fn a_web_token_is_of_no_use_at_business_calls() {
    let world = world().await;
    for scope in [Scope::Base, Scope::UserInfo] {
        let (web, _) = log_in(&world, scope).await;
        for path in ["user/info", "get_api_domain_ip", "ticket/getticket"] {
            let target = format!("/cgi-bin/{path}?access_token={web}&openid={USER}&type=jsapi");
            let answer = world.get(&target).await;
            assert_eq!(answer.errcode(), 40001, "{path}");
            assert!(answer.errmsg().contains("getStableAccessToken"), "{}", answer.errmsg());
            assert_eq!(world.sim.calls().log.pop().unwrap().appid, APP);
        }
    }
    let (web, _) = log_in(&world, Scope::UserInfo).await;
    world.classic().await;
    world.stable(true).await;
    assert_eq!(userinfo(&world, &web, USER).await.errcode(), 0, "global tokens do not touch it");
}

#[tokio::test(start_paused = true)]
async fn a_virtual_account_is_never_the_user() {
    let world = world().await;
    let log_in = async || {
        let code = world.sim.issue_code(APP, USER, Scope::UserInfo, true).unwrap();
        exchange(&world, &code).await.json()
    };
    let (first, second) = (log_in().await, log_in().await);
    assert_ne!(first["openid"], second["openid"]);
    for given in [first, second] {
        assert_eq!(given["is_snapshotuser"], 1);
        let (openid, unionid) = (given["openid"].as_str().unwrap(), given["unionid"].as_str());
        assert!(openid.len() == 28 && openid.starts_with('o') && openid != USER);
        assert!(unionid.is_some_and(|unionid| unionid != "oUnion"));
        let token = given["access_token"].as_str().unwrap();
        let profile = userinfo(&world, token, openid).await.json();
        assert_eq!(
            (&profile["nickname"], profile["unionid"].as_str()),
            (&json!("微信用户"), unionid)
        );
        assert!(profile["headimgurl"].as_str().unwrap().starts_with("https://"));
        assert_eq!(userinfo(&world, token, USER).await.errcode(), 40003);
        assert!(world.sim.grants_of(APP, openid)[0].snapshot);
        let refreshed = refresh(&world, given["refresh_token"].as_str().unwrap()).await.json();
        assert_eq!(
            (&refreshed["openid"], refreshed.get("is_snapshotuser")),
            (&json!(openid), None)
        );
    }
    world.sim.set_switches(Switches {
        snapshot_flag_missing: true,
        snapshot_userinfo_refused: true,
        ..Switches::default()
    });
    let given = log_in().await;
    assert_eq!(given.get("is_snapshotuser"), None);
    let (token, openid) = (given["access_token"].as_str().unwrap(), given["openid"].as_str());
    assert_eq!(userinfo(&world, token, openid.unwrap()).await.errcode(), 48001);
    assert_eq!(exchange(&world, &code(&world, Scope::UserInfo)).await.json()["openid"], USER);

    world.sim.set_switches(Switches { snapshot_flag_on_real_users: true, ..Switches::default() });
    for (scope, flag) in [(Scope::UserInfo, Some(&json!(1))), (Scope::Base, None)] {
        let given = exchange(&world, &code(&world, scope)).await.json();
        assert_eq!((&given["openid"], given.get("is_snapshotuser")), (&json!(USER), flag));
    }
    assert_eq!(log_in().await["is_snapshotuser"], 1);
    world.sim.update_app(APP, |app| app.bound = false).unwrap();
    let given = log_in().await;
    assert_eq!((given.get("unionid"), &given["is_snapshotuser"]), (None, &json!(1)));
    let (token, openid) = (given["access_token"].as_str().unwrap(), given["openid"].as_str());
    let profile = userinfo(&world, token, openid.unwrap()).await.json();
    assert_eq!((&profile["openid"], profile.get("unionid")), (&given["openid"], None));
}

#[tokio::test(start_paused = true)]
async fn calls_are_logged_without_secrets() {
    let world = world().await;
    let code = code(&world, Scope::UserInfo);
    let answer = exchange(&world, &code).await;
    let (web, token) = (answer.token(), refresh_token(&answer));
    exchange(&world, &code).await;
    refresh(&world, &token).await;
    userinfo(&world, &web, USER).await;
    world.get(&format!("/sns/oauth2/refresh_token?refresh_token={token}")).await;
    let calls = world.sim.calls();
    let text = serde_json::to_string(&calls).unwrap();
    for secret in [&code, &web, &token, SECRET] {
        assert!(!text.contains(secret), "{text}");
    }
    let log = calls.log;
    assert!(log.iter().all(|entry| entry.appid == APP), "{text}");
    assert!(log[0].code.is_some() && log[0].token.is_none());
    assert_eq!(log[1].code, log[0].code, "one code, one hash");
    assert_eq!((log[0].errcode, log[1].errcode), (Some(0), Some(40163)));
    assert_eq!((&log[2].answered, &log[3].token), (&log[0].answered, &log[0].answered));
    assert_eq!(log[4].token, log[2].token);
    assert_ne!(log[2].token, log[0].answered);
}

#[tokio::test(start_paused = true)]
async fn a_reset_forgets_logins() {
    let world = world().await;
    let (web, token) = log_in(&world, Scope::UserInfo).await;
    let code = code(&world, Scope::UserInfo);
    world.sim.reset();
    assert_eq!(userinfo(&world, &web, USER).await.errcode(), 40001);
    assert_eq!(refresh(&world, &token).await.errcode(), 40030);
    assert_eq!(exchange(&world, &code).await.errcode(), 40029);
    let (again, _) = log_in(&world, Scope::UserInfo).await;
    assert_ne!(again, web);
}

#[tokio::test(start_paused = true)]
async fn unknown_paths_and_methods_are_answered_in_the_same_style() {
    let world = world().await;
    let answer = world.get("/sns/nothing").await;
    assert!(answer.errmsg().starts_with("invalid url, rid: "), "{}", answer.errmsg());
    let answer = crate::harness::ask(world.api, "DELETE", "/sns/userinfo", b"").await.unwrap();
    assert_eq!(answer.errcode(), 43001);
    assert_eq!(world.post("/sns/userinfo", "").await.errcode(), 41001);
}
