//! What each method sends, to the byte.

use std::fmt::Debug;

use wechat::{AuthCode, Client, Error, Lang, Mode, OpenId, RefreshToken, TicketKind, WebToken};

use crate::server::{Reply, Server, TOKEN_BODY, app, client, secret, token};

/// Makes a call against one answer, and compares the request. `HOST` stands for the address.
async fn check<T: Debug>(
    expected: &str,
    answer: &'static str,
    call: impl AsyncFnOnce(Client) -> Result<T, Error>,
) -> T {
    let server = Server::start([Reply::Json(answer)]).await;
    let result = call(client(&[server.url()])).await.unwrap();
    let expected = expected.replace("HOST", &server.address.to_string());
    assert_eq!(server.requests(), [expected]);
    result
}

/// What the exchange of a code and the renewal of a web token answer.
const GRANT: &str = r#"{"access_token":"WEB","expires_in":7200,"refresh_token":"REFRESH","openid":"O","scope":"snsapi_base"}"#;

#[tokio::test]
async fn the_exchange_of_a_code() {
    let expected = "GET /sns/oauth2/access_token?appid=wx0123456789abcdef\
                    &secret=c4n4ry%2Bs3cr3t%2F%26&code=c%2B0d3&grant_type=authorization_code \
                    HTTP/1.1\nhost: HOST\n\n";
    let code = AuthCode::new("c+0d3");
    let issued =
        check(expected, GRANT, async |client| client.exchange_code(&app(), &secret(), &code).await);
    assert_eq!(issued.await.token.expose(), "WEB");
}

#[tokio::test]
async fn a_web_token_is_renewed_by_its_refresh_token_and_nothing_else() {
    let expected = "GET /sns/oauth2/refresh_token?appid=wx0123456789abcdef\
                    &grant_type=refresh_token&refresh_token=r3fr3sh HTTP/1.1\nhost: HOST\n\n";
    let refresh = RefreshToken::new("r3fr3sh");
    let issued =
        check(expected, GRANT, async |client| client.refresh_web_token(&app(), &refresh).await);
    assert_eq!(issued.await.refresh_token.expose(), "REFRESH");
}

#[tokio::test]
async fn a_web_token_is_checked() {
    let expected = "GET /sns/auth?access_token=w3b&openid=o1 HTTP/1.1\nhost: HOST\n\n";
    let (web, user) = (WebToken::new("w3b"), OpenId::new("o1"));
    check(expected, DONE, async |client| client.check_web_token(&web, &user).await).await;
}

#[tokio::test]
async fn a_profile() {
    let answer = r#"{"openid":"o1","nickname":"N"}"#;
    let (web, user) = (WebToken::new("w3b"), OpenId::new("o1"));
    for (lang, rest) in [(None, ""), (Some(Lang::En), "&lang=en")] {
        let expected =
            format!("GET /sns/userinfo?access_token=w3b&openid=o1{rest} HTTP/1.1\nhost: HOST\n\n");
        let profile =
            check(&expected, answer, async |client| client.web_user(&web, &user, lang).await).await;
        assert_eq!(profile.nickname, "N");
    }
}

#[tokio::test]
async fn the_exchange_of_a_js_code() {
    let expected = "GET /sns/jscode2session?appid=wx0123456789abcdef\
                    &secret=c4n4ry%2Bs3cr3t%2F%26&js_code=c0d3&grant_type=authorization_code \
                    HTTP/1.1\nhost: HOST\n\n";
    let answer = r#"{"session_key":"tiihtNczf5v6AKRyjwEUhQ==","openid":"o1"}"#;
    let code = AuthCode::new("c0d3");
    let session = check(expected, answer, async |client| {
        client.exchange_js_code(&app(), &secret(), &code).await
    });
    assert_eq!(session.await.openid.as_str(), "o1");
}

const DONE: &str = r#"{"errcode":0,"errmsg":"ok"}"#;

#[tokio::test]
async fn classic_token() {
    let expected = "GET /cgi-bin/token?grant_type=client_credential&appid=wx0123456789abcdef\
                    &secret=c4n4ry%2Bs3cr3t%2F%26 HTTP/1.1\nhost: HOST\n\n";
    let issued = check(expected, TOKEN_BODY, async |client| client.token(&app(), &secret()).await);
    let issued = issued.await;
    assert_eq!((issued.token.expose(), issued.expires_in.as_secs()), ("ACCESS_TOKEN", 7200));
}

#[tokio::test]
async fn the_date_of_an_answer() {
    let expected = "GET /cgi-bin/get_api_domain_ip HTTP/1.1\nhost: HOST\n\n";
    // The answer may refuse the call.
    let refused = r#"{"errcode":41001,"errmsg":"access_token missing"}"#;
    check(expected, refused, async |client| client.server_date().await).await;
}

#[tokio::test]
async fn stable_token() {
    for (mode, force) in [(Mode::Normal, false), (Mode::Force, true)] {
        let body = format!(
            "{{\"grant_type\":\"client_credential\",\"appid\":\"wx0123456789abcdef\",\
             \"secret\":\"c4n4ry+s3cr3t/&\",\"force_refresh\":{force}}}"
        );
        let expected = format!(
            "POST /cgi-bin/stable_token HTTP/1.1\ncontent-type: application/json\nhost: HOST\n\
             content-length: {}\n\n{body}",
            body.len()
        );
        check(&expected, TOKEN_BODY, async |client| {
            client.stable_token(&app(), &secret(), mode).await
        })
        .await;
    }
}

#[tokio::test]
async fn tickets() {
    let answer = r#"{"errcode":0,"errmsg":"ok","ticket":"TICKET","expires_in":7200}"#;
    for (kind, name) in [(TicketKind::Jsapi, "jsapi"), (TicketKind::WxCard, "wx_card")] {
        let expected = format!(
            "GET /cgi-bin/ticket/getticket?access_token=c4n4ry%3Dt0k3n%3F&type={name} HTTP/1.1\n\
             host: HOST\n\n"
        );
        let issued =
            check(&expected, answer, async |client| client.ticket(&token(), kind).await).await;
        assert_eq!(issued.ticket.expose(), "TICKET");
    }
}

#[tokio::test]
async fn one_user() {
    let answer = r#"{"subscribe":1,"openid":"o 1"}"#;
    for (lang, rest) in [(None, ""), (Some(Lang::ZhTw), "&lang=zh_TW")] {
        let expected = format!(
            "GET /cgi-bin/user/info?access_token=c4n4ry%3Dt0k3n%3F&openid=o%201{rest} HTTP/1.1\n\
             host: HOST\n\n"
        );
        let user = check(&expected, answer, async |client| {
            client.user_info(&token(), &OpenId::new("o 1"), lang).await
        })
        .await;
        assert!(user.subscribe);
    }
}

#[tokio::test]
async fn several_users() {
    let answer = r#"{"user_info_list":[{"subscribe":1,"openid":"o1"},{"openid":"o2"}]}"#;
    for (lang, body) in [
        (None, r#"{"user_list":[{"openid":"o1"},{"openid":"o2"}]}"#),
        (
            Some(Lang::En),
            r#"{"user_list":[{"openid":"o1","lang":"en"},{"openid":"o2","lang":"en"}]}"#,
        ),
    ] {
        let expected = format!(
            "POST /cgi-bin/user/info/batchget?access_token=c4n4ry%3Dt0k3n%3F HTTP/1.1\n\
             content-type: application/json\nhost: HOST\ncontent-length: {}\n\n{body}",
            body.len()
        );
        let ids = [OpenId::new("o1"), OpenId::new("o2")];
        let users = check(&expected, answer, async |client| {
            client.user_info_batch(&token(), &ids, lang).await
        })
        .await;
        assert_eq!(users.len(), 2);
    }
}

#[tokio::test]
async fn list_of_followers() {
    let answer = r#"{"total":1,"count":1,"data":{"openid":["o1"]},"next_openid":""}"#;
    let after = OpenId::new("o0");
    for (after, rest) in [(None, ""), (Some(&after), "&next_openid=o0")] {
        let expected = format!(
            "GET /cgi-bin/user/get?access_token=c4n4ry%3Dt0k3n%3F{rest} HTTP/1.1\nhost: HOST\n\n"
        );
        let page =
            check(&expected, answer, async |client| client.users(&token(), after).await).await;
        assert_eq!((page.openids, page.next_openid), (vec![OpenId::new("o1")], None));
    }
}

#[tokio::test]
async fn addresses_of_the_api() {
    let expected = "GET /cgi-bin/get_api_domain_ip?access_token=c4n4ry%3Dt0k3n%3F HTTP/1.1\n\
                    host: HOST\n\n";
    let answer = r#"{"ip_list":["101.89.47.18"]}"#;
    let ips = check(expected, answer, async |client| client.api_domain_ips(&token()).await).await;
    assert_eq!(ips, ["101.89.47.18"]);
}

#[tokio::test]
async fn quota() {
    let expected = "POST /cgi-bin/openapi/quota/get?access_token=c4n4ry%3Dt0k3n%3F HTTP/1.1\n\
                    content-type: application/json\nhost: HOST\ncontent-length: 38\n\n\
                    {\"cgi_path\":\"/cgi-bin/message/custom\"}";
    let answer = r#"{"errcode":0,"errmsg":"ok","quota":{"daily_limit":9,"used":2,"remain":7}}"#;
    let quota = check(expected, answer, async |client| {
        client.quota(&token(), "/cgi-bin/message/custom").await
    })
    .await;
    assert_eq!((quota.daily_limit, quota.used, quota.remain), (9, 2, 7));
}

#[tokio::test]
async fn clearing_the_quota() {
    let expected = "POST /cgi-bin/clear_quota?access_token=c4n4ry%3Dt0k3n%3F HTTP/1.1\n\
                    content-type: application/json\nhost: HOST\ncontent-length: 30\n\n\
                    {\"appid\":\"wx0123456789abcdef\"}";
    check(expected, DONE, async |client| client.clear_quota(&token(), &app()).await).await;

    let expected = "POST /cgi-bin/clear_quota/v2 HTTP/1.1\n\
                    content-type: application/json\nhost: HOST\ncontent-length: 60\n\n\
                    {\"appid\":\"wx0123456789abcdef\",\"appsecret\":\"c4n4ry+s3cr3t/&\"}";
    check(expected, DONE, async |client| client.clear_quota_v2(&app(), &secret()).await).await;
}

#[tokio::test]
async fn a_base_url_may_have_a_path() {
    let server = Server::start([Reply::Json(TOKEN_BODY)]).await;
    let client = client(&[format!("{}/wx/api/", server.url())]);
    client.token(&app(), &secret()).await.unwrap();
    assert!(server.requests()[0].starts_with("GET /wx/api/cgi-bin/token?grant_type="));
}
