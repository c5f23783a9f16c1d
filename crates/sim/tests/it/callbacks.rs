//! Where browsers go after consent: to which address, and how often.

use sim::{CallbackMode, DuplicateCallbacks, Switches, UserSpec};
use tokio::time::Instant;

use crate::{
    harness::{APP, Answer, SECRET},
    pages::{
        CALLBACK, WECHAT, authorize, check_page, code_in, openid_of, qr_connect, submit, ticket,
        uuid, visit, world, world_with,
    },
};

/// What the script of a page reads under a name.
fn data(page: &Answer, name: &str) -> String {
    let rest = page.text().split_once(&format!(" data-{name}=\"")).unwrap().1;
    rest.split('"').next().unwrap().replace("&amp;", "&")
}

#[tokio::test(start_paused = true)]
async fn a_browser_comes_back_twice() {
    let world = world_with(Switches { auto_consent: true, ..Switches::default() }).await;
    let twice = async |mode| {
        let twice = DuplicateCallbacks { count: Some(1), ..DuplicateCallbacks::new(mode) };
        world.sim.set_duplicate_callbacks(APP, Some(twice)).unwrap();
        let answer = visit(&world, &authorize("snsapi_base"), &[]).await;
        let first = answer.header("location").unwrap().to_owned();
        let second = answer.header("x-sim-second-callback").unwrap().to_owned();
        let next = visit(&world, &authorize("snsapi_base"), &[]).await;
        assert_eq!(next.header("x-sim-second-callback"), None, "once was asked for");
        (first, second)
    };
    let (first, second) = twice(CallbackMode::SameCode).await;
    assert_eq!(first, second);
    let (first, second) = twice(CallbackMode::NewCode).await;
    assert_ne!(code_in(&first), code_in(&second));
    assert_eq!(openid_of(&world, APP, &first).await, "o1");
    assert_eq!(openid_of(&world, APP, &second).await, "o1");

    let (first, second) = twice(CallbackMode::SlowFirst).await;
    assert_eq!(first, second);
    let begin = Instant::now();
    let refused = format!("/sns/oauth2/access_token?appid={APP}&secret=x&code={}", code_in(&first));
    assert_eq!(world.get(&refused).await.errcode(), 40125);
    assert_eq!(begin.elapsed().as_secs(), 0);
    assert_eq!(openid_of(&world, APP, &first).await, "o1");
    assert_eq!(begin.elapsed().as_secs(), 15);
    let code = code_in(&first);
    let query = format!("appid={APP}&secret={SECRET}&code={code}&grant_type=authorization_code");
    let begin = Instant::now();
    let again = world.get(&format!("/sns/oauth2/access_token?{query}")).await;
    assert_eq!((again.errcode(), begin.elapsed().as_secs()), (40163, 0));
    let log = world.sim.calls().log;
    let of_code = log.iter().filter(|call| call.code == log[log.len() - 1].code);
    let outcomes: Vec<_> = of_code.map(|call| call.errcode).collect();
    assert_eq!(outcomes, [Some(40125), Some(0), Some(40163)]);
    assert!(world.sim.set_duplicate_callbacks("wx0", None).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_real_browser_is_told_both_addresses() {
    let world = world().await;
    let twice = DuplicateCallbacks::new(CallbackMode::NewCode);
    world.sim.set_duplicate_callbacks(APP, Some(twice)).unwrap();
    for _ in 0..2 {
        let page = visit(&world, &authorize("snsapi_base"), &[WECHAT]).await;
        check_page(&page, 200);
        let (first, second) = (data(&page, "first"), data(&page, "second"));
        assert_ne!(code_in(&first), code_in(&second));
        assert_eq!(openid_of(&world, APP, &second).await, "o1");
    }
    world.sim.set_duplicate_callbacks(APP, None).unwrap();
    assert_eq!(visit(&world, &authorize("snsapi_base"), &[WECHAT]).await.status, 302);
    world.sim.set_duplicate_callbacks(APP, Some(twice)).unwrap();
    world.sim.reset();
    assert_eq!(visit(&world, &authorize("snsapi_base"), &[WECHAT]).await.status, 302);
    let page = visit(&world, &authorize("snsapi_userinfo"), &[WECHAT]).await;
    let qr = visit(&world, &qr_connect(), &[]).await;
    world.sim.reset();
    let form = format!("ticket={}&openid=o1&decision=allow", ticket(&page));
    let answer = submit(&world, "/connect/oauth2/authorize", &form).await;
    assert_eq!(answer.status, 200, "a reset forgets questions");
    let status = visit(&world, &format!("/connect/l/qrconnect?uuid={}", uuid(&qr)), &[]).await;
    assert_eq!(status.text(), r#"{"status":"over"}"#);
}

#[tokio::test(start_paused = true)]
async fn a_browser_is_impatient_or_asks_twice_at_once() {
    let world = world().await;
    for (mode, after) in [
        (CallbackMode::SameCode, "0"),
        (CallbackMode::NewCode, "0"),
        (CallbackMode::SlowFirst, "1500"),
    ] {
        world.sim.set_duplicate_callbacks(APP, Some(DuplicateCallbacks::new(mode))).unwrap();
        let page = visit(&world, &authorize("snsapi_base"), &[WECHAT]).await;
        assert_eq!(data(&page, "after"), after, "{mode:?}");
        // Between the two at once the browser has time to send the first.
        assert!(
            page.text().contains("if (after !== '0') return setTimeout(again, Number(after));")
        );
        assert!(page.text().contains("while (performance.now() < end);again();"));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_escapes_from_an_address() {
    const HOSTILE: &str =
        "%23%22%3E%3Cscript%3Ealert(1)%3C%2Fscript%3E%250d%250a%0d%0ax-evil:1'%26";
    let world = world().await;
    let target = authorize("snsapi_base").replace(CALLBACK, &format!("http://127.0.0.1/{HOSTILE}"));
    let in_header = |code: &str| {
        let fragment = "#\"><script>alert(1)</script>%0d%0a%0D%0Ax-evil:1'&";
        format!("http://127.0.0.1/?code={code}&state=abc123{fragment}")
    };
    let in_page = |code: &str| {
        let fragment = "#&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;%0d%0a\u{fffd}\u{fffd}\
                        x-evil:1&#39;&amp;";
        format!("http://127.0.0.1/?code={code}&amp;state=abc123{fragment}")
    };
    let code_of = |address: &str| {
        address.split_once("code=").unwrap().1.split('&').next().unwrap().to_owned()
    };
    let once = visit(&world, &target, &[WECHAT]).await;
    let location = once.header("location").unwrap();
    assert_eq!(location, in_header(&code_of(location)));

    let twice = DuplicateCallbacks::new(CallbackMode::NewCode);
    world.sim.set_duplicate_callbacks(APP, Some(twice)).unwrap();
    let page = visit(&world, &target, &[WECHAT]).await;
    check_page(&page, 200);
    let text = page.text();
    let codes = [code_of(&data(&page, "first")), code_of(&data(&page, "second"))];
    let (first, second) = (in_page(&codes[0]), in_page(&codes[1]));
    for part in [
        format!("content=\"2;url={first}\"></noscript>"),
        format!("<a href=\"{first}\">"),
        format!(" data-first=\"{first}\" data-second=\"{second}\" data-after=\"0\">"),
    ] {
        assert!(text.contains(&part), "{part} in {text}");
    }
    assert_eq!(text.matches("<script").count(), 1, "{text}");

    world.sim.set_switches(Switches { auto_consent: true, ..Switches::default() });
    let answer = visit(&world, &target, &[]).await;
    for name in ["location", "x-sim-second-callback"] {
        let address = answer.header(name).unwrap();
        assert_eq!(address, in_header(&code_of(address)), "{name}");
    }
    assert_eq!(answer.header("x-evil"), None);
}

#[tokio::test(start_paused = true)]
async fn nothing_escapes_from_an_openid() {
    const OPENID: &str = "o0\"><script>alert(1)</script>;a=b";
    let world = world().await;
    world.sim.add_user(UserSpec::new(APP, OPENID)).unwrap();
    let page = visit(&world, &authorize("snsapi_userinfo"), &[WECHAT]).await;
    check_page(&page, 200);
    let shown = "o0&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;;a=b";
    let radio = format!("value=\"{shown}\" checked> <bdi></bdi> <code>{shown}</code>");
    assert!(page.text().contains(&radio), "{}", page.text());
    let openid = "o0%22%3E%3Cscript%3Ealert%281%29%3C%2Fscript%3E%3Ba%3Db";
    let form = format!("ticket={}&openid={openid}&decision=allow", ticket(&page));
    let answer = submit(&world, "/connect/oauth2/authorize", &form).await;
    let cookie = answer.header("set-cookie").unwrap().split(';').next().unwrap();
    assert_eq!(cookie, format!("sim_openid={openid}"));
    let again = visit(&world, &authorize("snsapi_base"), &[WECHAT, ("cookie", cookie)]).await;
    assert_eq!(openid_of(&world, APP, again.header("location").unwrap()).await, OPENID);
}
