//! Browsers: consent inside WeChat, QR codes outside.

use sim::{AppKind, AppSpec, Scope, Switches, UserSpec};

use crate::harness::{APP, Answer, OTHER, SECRET, World, ask_as, pass};

/// The website app.
pub(crate) const SITE: &str = "wx5555555555555555";
/// Of a query, in their order.
type Parameters = Vec<(&'static str, String)>;

pub(crate) const WECHAT: (&str, &str) =
    ("user-agent", "Mozilla/5.0 (iPhone) MicroMessenger/8.0.50");
pub(crate) const ENGLISH: (&str, &str) = ("accept-language", "fr,en;q=0.8,zh;q=0.5");
pub(crate) const CALLBACK: &str = "http%3A%2F%2Flocalhost%3A8080%2Fcb%3Fx%3D1";

pub(crate) async fn world_with(switches: Switches) -> World {
    let world = World::with(switches).await;
    world.sim.add_app(AppSpec::new(APP, SECRET).with_loopback_redirects());
    let mut site = AppSpec::new(SITE, SECRET).with_loopback_redirects();
    site.kind = AppKind::Website;
    world.sim.add_app(site);
    for app in [APP, SITE] {
        for (openid, name) in [("o1", "小明<script>alert(1)</script>\u{8}"), ("o2", "Bob \"&\" Co")]
        {
            world.sim.add_user(UserSpec::new(app, openid).with_nickname(name)).unwrap();
        }
    }
    world
}

pub(crate) async fn world() -> World {
    world_with(Switches::default()).await
}

pub(crate) fn authorize(scope: &str) -> String {
    format!(
        "/connect/oauth2/authorize?appid={APP}&redirect_uri={CALLBACK}&response_type=code\
         &scope={scope}&state=abc123"
    )
}

pub(crate) fn qr_connect() -> String {
    format!(
        "/connect/qrconnect?appid={SITE}&redirect_uri={CALLBACK}&response_type=code\
         &scope=snsapi_login&state=abc123"
    )
}

pub(crate) async fn visit(world: &World, target: &str, headers: &[(&str, &str)]) -> Answer {
    ask_as(world.api, "GET", target, headers, b"").await.unwrap()
}

pub(crate) async fn submit(world: &World, path: &str, form: &str) -> Answer {
    ask_as(world.api, "POST", path, &[], form.as_bytes()).await.unwrap()
}

/// The value of a hidden field.
pub(crate) fn ticket(page: &Answer) -> String {
    let rest = page.text().split_once("name=\"ticket\" value=\"").unwrap().1;
    rest.split('"').next().unwrap().to_owned()
}

/// The uuid of a page with a QR code.
pub(crate) fn uuid(page: &Answer) -> String {
    let rest = page.text().split_once("/connect/l/qrconnect?uuid=").unwrap().1;
    rest.split('"').next().unwrap().to_owned()
}

/// The code in an address, which is otherwise as expected.
pub(crate) fn code_in(address: &str) -> String {
    let rest = address.strip_prefix("http://localhost:8080/cb?x=1&code=").unwrap();
    rest.strip_suffix("&state=abc123").unwrap().to_owned()
}

/// The openid that a code is traded for.
pub(crate) async fn openid_of(world: &World, app: &str, address: &str) -> String {
    let code = code_in(address);
    let query = format!("appid={app}&secret={SECRET}&code={code}&grant_type=authorization_code");
    let answer = world.get(&format!("/sns/oauth2/access_token?{query}")).await.json();
    answer["openid"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

pub(crate) fn check_page(page: &Answer, status: u16) {
    assert_eq!(page.status, status, "{page:?}");
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(page.header("cache-control"), Some("no-store"));
    assert!(page.header("date").unwrap().contains("17 Sep 2026"));
    let policy = page.header("content-security-policy").unwrap();
    let nonce = policy.split_once("style-src 'nonce-").unwrap().1.split('\'').next().unwrap();
    assert!(policy.starts_with("default-src 'none'; ") && policy.contains("base-uri 'none'"));
    let text = page.text();
    assert!(text.contains(&format!("<style nonce=\"{nonce}\">")), "{text}");
    for script in text.split("<script").skip(1) {
        assert!(script.starts_with(&format!(" nonce=\"{nonce}\"")), "{text}");
    }
    for outside in [" src=", "@import", "url(", "<link", "onclick"] {
        assert!(!text.contains(outside), "{outside} in {text}");
    }
    assert!(!text.contains("alert(1)</script>") && !text.contains('\u{8}'), "{text}");
}

#[tokio::test(start_paused = true)]
async fn base_is_silent_inside_wechat() {
    let world = world().await;
    let target = authorize("snsapi_base");
    let answer = visit(&world, &target, &[WECHAT]).await;
    assert_eq!((answer.status, answer.header("cache-control")), (302, Some("no-store")));
    let location = answer.header("location").unwrap();
    assert_eq!(openid_of(&world, APP, location).await, "o1");
    for (header, openid) in [
        (("x-sim-openid", "o2"), "o2"),
        (("cookie", "a=b; sim_openid=o2"), "o2"),
        (("cookie", "sim_openid=o9"), "o1"),
    ] {
        let answer = visit(&world, &target, &[WECHAT, header]).await;
        assert_eq!(openid_of(&world, APP, answer.header("location").unwrap()).await, openid);
    }
    let answer = visit(&world, &target, &[WECHAT, ("x-sim-openid", "o9")]).await;
    check_page(&answer, 200);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn other_browsers_are_sent_to_wechat_or_pass_for_it() {
    let world = world().await;
    let target = authorize("snsapi_base");
    let page = visit(&world, &target, &[]).await;
    check_page(&page, 200);
    assert!(page.text().contains("请在微信客户端打开链接"), "{}", page.text());
    assert!(page.text().contains("<html lang=\"zh-CN\">"));
    let english = visit(&world, &target, &[ENGLISH]).await;
    check_page(&english, 200);
    assert!(english.text().contains("Open this link in WeChat"), "{}", english.text());
    assert!(english.text().contains("<html lang=\"en\">"));
    let chosen = visit(&world, &format!("{target}&lang=cn"), &[ENGLISH]).await;
    assert!(chosen.text().contains("请在微信客户端打开链接"), "{}", chosen.text());

    let link = page.text().split_once("href=\"").unwrap().1.split('"').next().unwrap();
    let entered = visit(&world, link, &[]).await;
    assert_eq!((entered.status, entered.header("location")), (302, Some(target.as_str())));
    let cookie = entered.header("set-cookie").unwrap().split(';').next().unwrap();
    assert_eq!(visit(&world, &target, &[("cookie", cookie)]).await.status, 302);
    for outside in
        ["https%3A%2F%2Fevil.example", "%2F%2Fevil.example", "", "%2Fconnect%2Fqrconnect"]
    {
        let target = format!("/connect/act-as-wechat?to={outside}");
        let refused = visit(&world, &target, &[]).await;
        assert_eq!((refused.status, refused.header("location")), (200, None));
        assert_eq!(refused.header("set-cookie"), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_profile_needs_consent() {
    let world = world().await;
    let target = authorize("snsapi_userinfo");
    let page = visit(&world, &target, &[WECHAT]).await;
    check_page(&page, 200);
    for part in [
        "微信授权",
        "申请获取你的昵称、头像",
        "value=\"o1\" checked",
        "<bdi>小明&lt;script&gt;alert(1)&lt;/script&gt;\u{fffd}</bdi>",
        "<bdi>Bob &quot;&amp;&quot; Co</bdi>",
    ] {
        assert!(page.text().contains(part), "{part} in {}", page.text());
    }
    let english = visit(&world, &target, &[WECHAT, ENGLISH]).await;
    check_page(&english, 200);
    assert!(english.text().contains("asks for your nickname and picture"));

    let form = format!("ticket={}&openid=o2&decision=allow", ticket(&page));
    let answer = submit(&world, "/connect/oauth2/authorize", &form).await;
    assert_eq!(answer.status, 302);
    assert_eq!(openid_of(&world, APP, answer.header("location").unwrap()).await, "o2");
    assert!(answer.header("set-cookie").unwrap().starts_with("sim_openid=o2; "));
    let again = submit(&world, "/connect/oauth2/authorize", &form).await;
    assert_eq!((again.status, again.header("location")), (200, None), "a ticket is for once");
    assert!(again.text().contains("页面已失效"), "{}", again.text());

    let form = format!("ticket={}&openid=o2&decision=deny", ticket(&english));
    let answer = submit(&world, "/connect/oauth2/authorize?lang=en", &form).await;
    check_page(&answer, 200);
    assert!(answer.text().contains("You denied it") && answer.header("location").is_none());
}

#[tokio::test(start_paused = true)]
async fn forged_and_stale_consents_are_refused() {
    let world = world().await;
    for form in
        ["", "openid=o1&decision=allow", "ticket=x&openid=o1&decision=allow", "\u{ff}=%zz&&"]
    {
        let answer = submit(&world, "/connect/oauth2/authorize", form).await;
        check_page(&answer, 200);
        assert!(answer.text().contains("页面已失效"), "{form}");
    }
    for (waited, status) in [(599, 302), (600, 200)] {
        let page = visit(&world, &authorize("snsapi_userinfo"), &[WECHAT]).await;
        pass(waited).await;
        let form = format!("ticket={}&openid=o1&decision=allow", ticket(&page));
        assert_eq!(submit(&world, "/connect/oauth2/authorize", &form).await.status, status);
    }
    let page = visit(&world, &authorize("snsapi_userinfo"), &[WECHAT]).await;
    let form = format!("ticket={}&openid=o9&decision=allow", ticket(&page));
    assert_eq!(submit(&world, "/connect/oauth2/authorize", &form).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_page_refuses_what_wechat_refuses() {
    let world = world().await;
    let query = |change: &dyn Fn(&mut Parameters)| {
        let mut query = vec![
            ("appid", APP.to_owned()),
            ("redirect_uri", CALLBACK.to_owned()),
            ("response_type", "code".to_owned()),
            ("scope", "snsapi_base".to_owned()),
            ("state", "a".repeat(128)),
        ];
        change(&mut query);
        let pairs: Vec<String> =
            query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!("/connect/oauth2/authorize?{}", pairs.join("&"))
    };
    assert_eq!(visit(&world, &query(&|_| {}), &[WECHAT]).await.status, 302);
    let set = |place: usize, value: &str| {
        let value = value.to_owned();
        query(&move |query| query[place].1.clone_from(&value))
    };
    let long = "a".repeat(129);
    let far = |length: usize| format!("http://localhost/{}", "a".repeat(length - 17));
    assert_eq!(visit(&world, &set(1, &far(2_048)), &[WECHAT]).await.status, 302);
    for (target, code, chinese, english) in [
        (set(0, ""), 10012, "appid 不能为空", "appid is empty"),
        (set(0, "wx0"), 10012, "appid 不存在", "No account has this appid"),
        (set(0, SITE), 10016, "请使用公众号的 appid", "one of the Open Platform"),
        (set(1, ""), 10011, "redirect_uri 不能为空", "redirect_uri is empty"),
        (set(1, &far(2_049)), 10011, "最多 2048 字节", "2048 bytes at most"),
        (
            set(1, "http://localhost:99999/"),
            10003,
            "与后台配置不一致",
            "not one that is registered",
        ),
        (set(1, "http://evil.example/"), 10003, "与后台配置不一致", "not one that is registered"),
        (set(2, "token"), 10005, "参数缺失", "in WeChat's order"),
        (set(3, ""), 10010, "scope 不能为空", "scope is empty"),
        (set(3, "snsapi_login"), 10005, "scope 的权限", "no right to this scope"),
        (set(4, ""), 10013, "state 不能为空", "state is empty"),
        (set(4, "a-b"), 10013, "a-zA-Z0-9", "a-z, A-Z and 0-9 only"),
        (set(4, "%C3%A9"), 10013, "a-zA-Z0-9", "a-z, A-Z and 0-9 only"),
        (set(4, &long), 10013, "128", "128"),
        (query(&|query| query.swap(0, 1)), 10005, "顺序不对", "in WeChat's order"),
        (query(&|query| query.swap(3, 4)), 10005, "顺序不对", "in WeChat's order"),
        (query(&|query| query.push(("appid", APP.to_owned()))), 10005, "重复", "twice"),
        (query(&|query| query.insert(0, ("foo", String::new()))), 10005, "参数", "foreign"),
        (query(&|query| query.insert(4, ("forcePopup", "true".into()))), 10005, "顺序", "order"),
    ] {
        for (headers, text) in [(&[WECHAT][..], chinese), (&[WECHAT, ENGLISH], english)] {
            let page = visit(&world, &target, headers).await;
            check_page(&page, 200);
            let shown = page.text().replace("&#39;", "'");
            assert!(shown.contains(text) && shown.contains(&code.to_string()), "{target}: {shown}");
        }
    }
    for more in ["forcePopup=true", "forceSnapShot=false&connect_redirect=1", "lang=en"] {
        assert_eq!(
            visit(&world, &format!("{}&{more}", query(&|_| {})), &[WECHAT]).await.status,
            302
        );
    }
    world.sim.set_switches(Switches { strict_parameter_order: false, ..Switches::default() });
    let mixed = query(&|query| query.reverse());
    assert_eq!(visit(&world, &mixed, &[WECHAT]).await.status, 302);
    world.sim.set_switches(Switches { state_required: false, ..Switches::default() });
    let stateless = visit(&world, &set(4, ""), &[WECHAT]).await;
    assert!(stateless.header("location").unwrap().ends_with("&state="), "{stateless:?}");
    assert_eq!(visit(&world, &query(&|query| query.truncate(4)), &[WECHAT]).await.status, 302);
    let page = visit(&world, &set(4, "a-b"), &[WECHAT]).await;
    assert!(page.text().contains("10013"), "{}", page.text());
    world.sim.set_switches(Switches { authorize_too_frequent: true, ..Switches::default() });
    let page = visit(&world, &query(&|_| {}), &[WECHAT]).await;
    assert!(page.text().contains("10009") && page.text().contains("太频繁"), "{}", page.text());
    assert!(visit(&world, &qr_connect(), &[]).await.text().contains("<svg "));

    world.sim.set_switches(Switches { strict_parameter_order: false, ..Switches::default() });
    world.sim.update_app(APP, |app| app.banned = true).unwrap();
    let page = visit(&world, &mixed, &[WECHAT]).await;
    assert!(page.text().contains("10004"), "{}", page.text());
    world
        .sim
        .update_app(APP, |app| (app.banned, app.kind) = (false, AppKind::MiniProgram))
        .unwrap();
    let page = visit(&world, &mixed, &[WECHAT]).await;
    assert!(page.text().contains("10005"), "{}", page.text());
}

#[tokio::test(start_paused = true)]
async fn an_app_without_users_says_so() {
    let world = world().await;
    world.sim.update_app(OTHER, |app| app.redirect_hosts.push("localhost".to_owned())).unwrap();
    for scope in ["snsapi_base", "snsapi_userinfo"] {
        let target = authorize(scope).replace(APP, OTHER);
        let page = visit(&world, &target, &[WECHAT]).await;
        check_page(&page, 200);
        assert!(page.text().contains("没有用户"), "{}", page.text());
        let page = visit(&world, &target, &[WECHAT, ENGLISH]).await;
        assert!(page.text().contains("no users of this app"), "{}", page.text());
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_page_gives_a_virtual_account() {
    let world = world().await;
    for (scope, force, flag) in [
        ("snsapi_userinfo", "true", true),
        ("snsapi_userinfo", "false", false),
        ("snsapi_base", "true", false),
    ] {
        let target = format!("{}&forceSnapShot={force}", authorize(scope));
        let mut answer = visit(&world, &target, &[WECHAT]).await;
        if answer.status == 200 {
            assert_eq!(answer.text().contains("虚拟账号"), flag);
            let form = format!("ticket={}&openid=o1&decision=allow", ticket(&answer));
            answer = submit(&world, "/connect/oauth2/authorize", &form).await;
        }
        let openid = openid_of(&world, APP, answer.header("location").unwrap()).await;
        assert_eq!(openid != "o1", flag, "{scope} {force}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_phone_confirms_what_a_website_shows() {
    let world = world().await;
    let page = visit(&world, &qr_connect(), &[]).await;
    check_page(&page, 200);
    assert!(page.text().contains("请使用微信扫描二维码登录") && page.text().contains("<svg "));
    let english = visit(&world, &format!("{}&lang=en", qr_connect()), &[]).await;
    check_page(&english, 200);
    assert!(english.text().contains("Scan this QR code with WeChat"));

    let uuid = uuid(&page);
    assert!(page.text().contains(&format!("2;url=/connect/qrconnect/wait?uuid={uuid}")));
    let status = async || {
        let answer = visit(&world, &format!("/connect/l/qrconnect?uuid={uuid}"), &[]).await;
        answer.json()["status"].as_str().unwrap().to_owned()
    };
    let wait = async || visit(&world, &format!("/connect/qrconnect/wait?uuid={uuid}"), &[]).await;
    assert_eq!(status().await, "waiting");
    assert!(wait().await.text().contains("<svg "));
    let phone = visit(&world, &format!("/connect/confirm?uuid={uuid}"), &[]).await;
    check_page(&phone, 200);
    assert_eq!(status().await, "scanned");
    let form = format!("ticket={}&openid=o2&decision=allow", ticket(&phone));
    let done = submit(&world, "/connect/confirm", &form).await;
    check_page(&done, 200);
    assert!(done.text().contains("已确认登录"), "{}", done.text());
    assert_eq!(status().await, "confirmed");
    let back = wait().await;
    assert_eq!(back.status, 302);
    assert_eq!(openid_of(&world, SITE, back.header("location").unwrap()).await, "o2");
    let late = visit(&world, &format!("/connect/confirm?uuid={uuid}"), &[]).await;
    assert!(late.text().contains("页面已失效"), "{}", late.text());
}

#[tokio::test(start_paused = true)]
async fn a_phone_denies_or_is_late() {
    let world = world().await;
    let page = visit(&world, &qr_connect(), &[]).await;
    let uuid_one = uuid(&page);
    let phone = visit(&world, &format!("/connect/confirm?uuid={uuid_one}&lang=en"), &[]).await;
    let form = format!("ticket={}&decision=deny", ticket(&phone));
    let denied = submit(&world, "/connect/confirm?lang=en", &form).await;
    assert!(denied.text().contains("You denied it"), "{}", denied.text());
    let wait = format!("/connect/qrconnect/wait?uuid={uuid_one}");
    let back = visit(&world, &wait, &[]).await;
    assert!(back.text().contains("你拒绝了授权") && back.header("location").is_none());

    for (waited, text) in [(299, "已确认登录"), (300, "页面已失效")] {
        let uuid = uuid(&visit(&world, &qr_connect(), &[]).await);
        let phone = visit(&world, &format!("/connect/confirm?uuid={uuid}"), &[]).await;
        pass(waited).await;
        let form = format!("ticket={}&openid=o1&decision=allow", ticket(&phone));
        let page = submit(&world, "/connect/confirm", &form).await;
        assert!(page.text().contains(text), "{}", page.text());
    }
    let unknown = visit(&world, "/connect/l/qrconnect?uuid=x", &[]).await;
    assert_eq!(unknown.text(), r#"{"status":"over"}"#);
    let unknown = visit(&world, "/connect/qrconnect/wait?uuid=x&lang=en", &[]).await;
    assert!(unknown.text().contains("no longer valid"), "{}", unknown.text());
    let refused = visit(&world, &qr_connect().replace(SITE, APP), &[]).await;
    assert!(refused.text().contains("10005"), "{}", refused.text());
    let stateless = visit(&world, &qr_connect().replace("&state=abc123", ""), &[]).await;
    assert!(stateless.text().contains("<svg "), "{}", stateless.text());
}

#[tokio::test(start_paused = true)]
async fn a_test_account_is_for_its_followers() {
    let world = world().await;
    world.sim.add_user(UserSpec::new(APP, "o2").not_following()).unwrap();
    let visit_as = async |openid: &str, scope: &str| {
        let answer = visit(&world, &authorize(scope), &[WECHAT, ("x-sim-openid", openid)]).await;
        if scope == "snsapi_base" {
            return answer;
        }
        let form = format!("ticket={}&openid={openid}&decision=allow", ticket(&answer));
        submit(&world, "/connect/oauth2/authorize?lang=en", &form).await
    };
    for scope in ["snsapi_base", "snsapi_userinfo"] {
        assert_eq!(visit_as("o2", scope).await.status, 302, "official accounts are for everybody");
    }
    world.sim.update_app(APP, |app| app.kind = AppKind::Test).unwrap();
    for (scope, text) in [("snsapi_base", "请先关注"), ("snsapi_userinfo", "follow it first")] {
        assert_eq!(visit_as("o1", scope).await.status, 302);
        let page = visit_as("o2", scope).await;
        check_page(&page, 200);
        assert!(page.text().contains("10006") && page.text().contains(text), "{}", page.text());
        assert_eq!(page.header("set-cookie"), None);
    }
    world.sim.set_switches(Switches { auto_consent: true, ..Switches::default() });
    let page = visit(&world, &authorize("snsapi_base"), &[("x-sim-openid", "o2")]).await;
    assert!(page.text().contains("10006"), "{}", page.text());
    assert_eq!(visit(&world, &authorize("snsapi_base"), &[]).await.status, 302);
}

#[tokio::test(start_paused = true)]
async fn of_two_phones_the_first_decides() {
    let world = world().await;
    for (first, stage) in [("allow", "confirmed"), ("deny", "denied")] {
        let uuid = uuid(&visit(&world, &qr_connect(), &[]).await);
        let mut tickets = Vec::new();
        for _ in 0..2 {
            let phone = visit(&world, &format!("/connect/confirm?uuid={uuid}"), &[]).await;
            tickets.push(ticket(&phone));
        }
        assert_ne!(tickets[0], tickets[1]);
        let form = format!("ticket={}&openid=o2&decision={first}", tickets[0]);
        assert_eq!(submit(&world, "/connect/confirm", &form).await.status, 200);
        let wait = format!("/connect/qrconnect/wait?uuid={uuid}");
        let before = visit(&world, &wait, &[]).await;
        let form = format!("ticket={}&openid=o1&decision=allow", tickets[1]);
        let second = submit(&world, "/connect/confirm", &form).await;
        check_page(&second, 200);
        assert!(second.text().contains("页面已失效"), "{}", second.text());
        let status = visit(&world, &format!("/connect/l/qrconnect?uuid={uuid}"), &[]).await;
        assert_eq!(status.json()["status"], stage);
        let after = visit(&world, &wait, &[]).await;
        assert_eq!(after.header("location"), before.header("location"), "{first}");
        assert_eq!(after.header("location").is_some(), first == "allow");
        if let Some(location) = after.header("location") {
            assert_eq!(openid_of(&world, SITE, location).await, "o2");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn consent_at_once_needs_no_browser() {
    let world = world_with(Switches { auto_consent: true, ..Switches::default() }).await;
    for (target, app) in
        [(authorize("snsapi_base"), APP), (authorize("snsapi_userinfo"), APP), (qr_connect(), SITE)]
    {
        for (headers, openid) in [(&[][..], "o1"), (&[("x-sim-openid", "o2")], "o2")] {
            let answer = visit(&world, &target, headers).await;
            assert_eq!((answer.status, answer.header("x-sim-second-callback")), (302, None));
            let location = answer.header("location").unwrap();
            assert_eq!(openid_of(&world, app, location).await, openid);
        }
    }
    let page = visit(&world, &authorize("snsapi_base"), &[("x-sim-openid", "o9")]).await;
    check_page(&page, 200);
    assert!(page.text().contains("没有该 openid 的用户"), "{}", page.text());
    let path = "http%3A%2F%2F127.0.0.1%2F%E5%B0%8F";
    let answer = visit(&world, &authorize("snsapi_base").replace(CALLBACK, path), &[]).await;
    let location = answer.header("location").unwrap();
    assert!(location.starts_with("http://127.0.0.1/%E5%B0%8F?code="), "{location}");
}

#[tokio::test(start_paused = true)]
async fn other_pages_and_methods_do_not_exist() {
    let world = world().await;
    check_page(&visit(&world, "/connect/nothing?x=%3Cb%3E", &[]).await, 404);
    check_page(&submit(&world, "/connect/qrconnect", "").await, 405);
    world.sim.set_switches(Switches { auto_consent: true, ..Switches::default() });
    for (target, status) in [
        (authorize("snsapi_base").as_str(), 405),
        (&qr_connect(), 405),
        ("/connect/confirm?uuid=x", 405),
        ("/connect/qrconnect/wait?uuid=x", 200),
        ("/connect/l/qrconnect?uuid=x", 200),
        ("/connect/act-as-wechat?to=%2Fconnect%2Foauth2%2Fauthorize", 302),
    ] {
        let answer = ask_as(world.api, "HEAD", target, &[WECHAT], b"").await.unwrap();
        assert_eq!((answer.status, answer.body.len()), (status, 0), "{target}");
        assert!(!answer.head.contains("code="), "{}", answer.head);
    }
    world.sim.set_switches(Switches::default());
    let uuid = uuid(&visit(&world, &qr_connect(), &[]).await);
    ask_as(world.api, "HEAD", &format!("/connect/confirm?uuid={uuid}"), &[], b"").await.unwrap();
    let status = visit(&world, &format!("/connect/l/qrconnect?uuid={uuid}"), &[]).await;
    assert_eq!(status.text(), r#"{"status":"waiting"}"#);
    assert_eq!(world.sim.calls().log, [], "pages are no calls");
    let code = world.sim.issue_code(APP, "o1", Scope::Base, false).unwrap();
    assert!(code.len() == 32 && code.bytes().all(|byte| byte.is_ascii_alphanumeric()));
}
