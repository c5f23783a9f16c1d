//! What errors say, and that no secret and no URL is in any of them.

use wechat::{AuthCode, Error, Mode, RefreshToken};

use crate::server::{Reply, Server, app, client, closed_port, secret, token};

/// Makes one call with each secret against a host that always fails in the same way, and checks
/// that the errors show nothing. The call with the AppSecret in the query comes first.
async fn check_errors(reply: impl Fn() -> Option<Reply>) -> Vec<Error> {
    let (code, refresh) = (AuthCode::new("c4n4ry+c0d3"), RefreshToken::new("c4n4ry+r3fr3sh"));
    let mut errors = Vec::new();
    for call in 0..8 {
        let server = Server::start(reply()).await;
        let host = if reply().is_some() { server.url() } else { closed_port().await };
        let client = client(&[host]);
        let error = match call {
            0 => client.token(&app(), &secret()).await.unwrap_err(),
            1 => client.stable_token(&app(), &secret(), Mode::Normal).await.unwrap_err(),
            2 => client.stable_token(&app(), &secret(), Mode::Force).await.unwrap_err(),
            3 => client.clear_quota_v2(&app(), &secret()).await.unwrap_err(),
            4 => client.exchange_code(&app(), &secret(), &code).await.unwrap_err(),
            5 => client.exchange_js_code(&app(), &secret(), &code).await.unwrap_err(),
            6 => client.refresh_web_token(&app(), &refresh).await.unwrap_err(),
            _ => client.api_domain_ips(&token()).await.unwrap_err(),
        };
        let shown = format!("{error} {error:?}");
        for leak in ["c4n4ry", "s3cr3t", "t0k3n", "c0d3", "r3fr3sh", "://", "cgi-bin", "grant_type"]
        {
            assert!(!shown.contains(leak), "{leak} in {shown}");
        }
        errors.push(error);
    }
    errors
}

#[track_caller]
fn check_transport(errors: &[Error], sent: bool, part: &str) {
    for error in errors {
        let Error::Transport(error) = error else { panic!("{error:?}") };
        assert_eq!(error.sent, sent, "{error}");
        assert!(error.reason.contains(part), "{error}");
    }
}

#[track_caller]
fn check_protocol(errors: &[Error], status: u16, reason: &str) {
    for error in errors {
        let Error::Protocol(error) = error else { panic!("{error:?}") };
        assert_eq!((error.status, error.reason.as_str()), (status, reason));
    }
}

/// An answer that says everything the request did.
fn echo(head: &str, body: &str) -> Reply {
    let url = "http://127.0.0.1/cgi-bin/token?secret=c4n4ry%2Bs3cr3t%2F%26";
    let tell = "c4n4ry+s3cr3t/& c4n4ry=t0k3n? c4n4ry%3Dt0k3n%3F c4n4ry+c0d3 c4n4ry%2Bc0d3 \
                c4n4ry+r3fr3sh";
    Reply::Raw(format!("{head}\r\nX-Told: {tell}\r\nLocation: {url}\r\n\r\n{body}{tell}").into())
}

#[tokio::test]
async fn a_closed_port() {
    let errors = check_errors(|| None).await;
    check_transport(&errors, false, "onnection refused");
    assert!(errors[0].to_string().starts_with("WeChat could not be reached: 127.0.0.1:"));
}

#[tokio::test]
async fn a_reset() {
    let errors = check_errors(|| Some(Reply::Reset)).await;
    check_transport(&errors, true, "127.0.0.1:");
    assert!(errors[0].to_string().starts_with("the call to WeChat broke off: 127.0.0.1:"));
}

#[tokio::test]
async fn a_page_of_a_gateway() {
    let errors = check_errors(|| Some(echo("HTTP/1.1 502 Bad Gateway", "<html><body>502"))).await;
    check_protocol(&errors, 502, "it is HTML or XML, not JSON");
    let shown = "WeChat's answer (HTTP 502) was not understood: it is HTML or XML, not JSON";
    assert_eq!(errors[0].to_string(), shown);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let errors = check_errors(|| Some(echo("HTTP/1.1 302 Found", "<html>"))).await;
    let reason = "it is a redirect, which is not followed (it is HTML or XML, not JSON)";
    check_protocol(&errors, 302, reason);
}

#[tokio::test]
async fn a_truncated_body() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 1000";
    let errors = check_errors(|| Some(echo(head, "{\"access_token\":\""))).await;
    check_transport(&errors, true, "the answer broke off");
    let errors = check_errors(|| Some(echo("HTTP/1.1 200 OK", "{\"access_token\":\""))).await;
    for error in errors {
        let Error::Protocol(error) = error else { panic!("{error:?}") };
        assert!(error.reason.starts_with("it is JSON that breaks off after "), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_end() {
    let begun = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"access_token\":\"c4n4ry";
    let errors = check_errors(|| Some(Reply::Stuck(begun))).await;
    // The two exchanges of codes are waited for longer: there is no second one.
    let (others, exchanges): (Vec<_>, Vec<_>) =
        (0..).zip(errors).partition(|(call, _)| !matches!(call, 4 | 5));
    let errors = |some: Vec<(usize, Error)>| some.into_iter().map(|it| it.1).collect::<Vec<_>>();
    check_transport(&errors(others), true, "no answer within 8.0 s");
    check_transport(&errors(exchanges), true, "no answer within 20.0 s");
}

#[tokio::test]
async fn a_body_that_is_too_long() {
    let long = || {
        let body = " ".repeat(5 * 1024 * 1024);
        Reply::Raw(format!("HTTP/1.1 200 OK\r\n\r\n{body}{{}}").into())
    };
    let errors = check_errors(|| Some(long())).await;
    check_protocol(&errors, 200, "it is longer than 4 MiB");
}

#[tokio::test]
async fn something_that_is_not_http() {
    let errors = check_errors(|| Some(echo("c4n4ry+s3cr3t/&", ""))).await;
    check_transport(&errors, true, "invalid HTTP");
}

#[tokio::test]
async fn wechat_repeats_the_secret() {
    let text = r#"{"errcode":40125,"errmsg":"invalid appsecret c4n4ry+s3cr3t/& c4n4ry%2Bs3cr3t%2F%26 c4n4ry=t0k3n? c4n4ry%3Dt0k3n%3F rid: 63cf14c3-1af7da21-37efbc86"}"#;
    let server = Server::start([Reply::Json(text), Reply::Json(text)]).await;
    let client = client(&[server.url()]);
    let Err(Error::Api(error)) = client.token(&app(), &secret()).await else { panic!() };
    let shown = "invalid appsecret [redacted] [redacted] c4n4ry=t0k3n? c4n4ry%3Dt0k3n%3F";
    assert_eq!(error.stem(), shown, "the token is none of this request's secrets");
    assert_eq!(error.rid.as_deref(), Some("63cf14c3-1af7da21-37efbc86"));
    let Err(Error::Api(error)) = client.api_domain_ips(&token()).await else { panic!() };
    let shown = "invalid appsecret c4n4ry+s3cr3t/& c4n4ry%2Bs3cr3t%2F%26 [redacted] [redacted]";
    assert_eq!(error.stem(), shown);
}
