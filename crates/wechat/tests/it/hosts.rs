//! Which calls go to another host, or to the same one again, and when.

use std::{io, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::Instant};
use wechat::{
    AuthCode, Client, Config, ConfigError, Error, Mode, OpenId, RefreshToken, TicketKind, WebToken,
};

use crate::server::{Reply, Server, TOKEN_BODY, app, client, closed_port, config, secret, token};

const DONE: &str = r#"{"errcode":0,"errmsg":"ok"}"#;
const BUSY: &str = r#"{"errcode":-1,"errmsg":"system error"}"#;

/// Every call that must not reach WeChat twice, by number.
async fn only_once(client: &Client, call: usize) -> Result<(), Error> {
    match call {
        0 => client.token(&app(), &secret()).await.map(drop),
        1 => client.stable_token(&app(), &secret(), Mode::Force).await.map(drop),
        2 => client.clear_quota(&token(), &app()).await,
        3 => client.clear_quota_v2(&app(), &secret()).await,
        4 => client.exchange_code(&app(), &secret(), &AuthCode::new("c")).await.map(drop),
        5 => client.refresh_web_token(&app(), &RefreshToken::new("r")).await.map(drop),
        _ => client.exchange_js_code(&app(), &secret(), &AuthCode::new("c")).await.map(drop),
    }
}

/// A successful answer to each.
const ONLY_ONCE: [&str; 7] = [TOKEN_BODY, TOKEN_BODY, DONE, DONE, GRANT, GRANT, MINI_SESSION];

const GRANT: &str =
    r#"{"access_token":"W","expires_in":7200,"refresh_token":"R","openid":"O","scope":"S"}"#;
const MINI_SESSION: &str = r#"{"openid":"O","session_key":"K"}"#;

/// Every call that may, by number, with a successful answer.
async fn repeatable(client: &Client, call: usize) -> Result<(), Error> {
    let user = OpenId::new("o1");
    match call {
        0 => client.stable_token(&app(), &secret(), Mode::Normal).await.map(drop),
        1 => client.ticket(&token(), TicketKind::Jsapi).await.map(drop),
        2 => client.user_info(&token(), &user, None).await.map(drop),
        3 => client.user_info_batch(&token(), &[user], None).await.map(drop),
        4 => client.users(&token(), None).await.map(drop),
        5 => client.api_domain_ips(&token()).await.map(drop),
        6 => client.quota(&token(), "/cgi-bin/user/info").await.map(drop),
        7 => client.check_web_token(&WebToken::new("w"), &user).await,
        _ => client.web_user(&WebToken::new("w"), &user, None).await.map(drop),
    }
}

const ANSWERS: [&str; 9] = [
    TOKEN_BODY,
    r#"{"errcode":0,"ticket":"T","expires_in":7200}"#,
    r#"{"subscribe":0,"openid":"o1"}"#,
    r#"{"user_info_list":[]}"#,
    r#"{"total":0,"count":0,"next_openid":""}"#,
    r#"{"ip_list":[]}"#,
    r#"{"errcode":0,"quota":{}}"#,
    DONE,
    r#"{"openid":"o1"}"#,
];

fn gateway() -> Reply {
    let page = "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\n\r\n<html>502</html>";
    Reply::Raw(page.into())
}

#[tokio::test]
async fn every_call_goes_on_when_nothing_was_sent() {
    for (call, answer) in ONLY_ONCE.into_iter().enumerate() {
        let second = Server::start([Reply::Json(answer)]).await;
        let client = client(&[closed_port().await, second.url()]);
        only_once(&client, call).await.unwrap();
        assert_eq!(second.requests().len(), 1, "{call}");
    }
    for (call, answer) in ANSWERS.into_iter().enumerate() {
        let second = Server::start([Reply::Json(answer)]).await;
        let client = client(&[closed_port().await, second.url()]);
        repeatable(&client, call).await.unwrap();
        assert_eq!(second.requests().len(), 1, "{call}");
    }
}

#[tokio::test]
async fn a_call_that_counts_is_never_sent_twice() {
    let spoilers = || [Reply::Reset, Reply::Raw(Vec::new()), gateway(), Reply::Json(BUSY)];
    for call in 0..ONLY_ONCE.len() {
        for (number, spoiler) in spoilers().into_iter().enumerate() {
            let first = Server::start([spoiler]).await;
            let second = Server::start([]).await;
            let client = client(&[first.url(), second.url()]);
            let error = only_once(&client, call).await.unwrap_err();
            match (number, &error) {
                (0 | 1, Error::Transport(error)) => assert!(error.sent),
                (2, Error::Protocol(error)) => assert_eq!(error.status, 502),
                (3, Error::Api(error)) => assert_eq!(error.code, -1),
                _ => panic!("{call}: {error:?}"),
            }
            assert_eq!((first.requests().len(), second.connections()), (1, 0), "{call} {number}");
        }
    }
}

#[tokio::test]
async fn a_call_that_changes_nothing_goes_on() {
    let spoilers = || [Reply::Reset, Reply::Raw(Vec::new()), gateway()];
    for (call, answer) in ANSWERS.into_iter().enumerate() {
        for spoiler in spoilers() {
            let first = Server::start([spoiler]).await;
            let second = Server::start([Reply::Json(answer)]).await;
            let client = client(&[first.url(), second.url()]);
            repeatable(&client, call).await.unwrap();
            assert_eq!((first.requests().len(), second.requests().len()), (1, 1), "{call}");
        }
    }
}

#[tokio::test]
async fn an_errcode_is_final() {
    let under_502 = format!("HTTP/1.1 502 Bad Gateway\r\n\r\n{BUSY}");
    for call in 0..2 * ANSWERS.len() {
        let busy = if call < ANSWERS.len() {
            Reply::Json(BUSY)
        } else {
            Reply::Raw(under_502.clone().into())
        };
        let first = Server::start([busy]).await;
        let second = Server::start([]).await;
        let client = client(&[first.url(), second.url()]);
        let error = repeatable(&client, call % ANSWERS.len()).await.unwrap_err();
        assert!(matches!(error, Error::Api(error) if error.code == -1));
        assert_eq!(second.connections(), 0);
    }
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_final_below_500() {
    let first = Server::start([Reply::Json("[]")]).await;
    let second = Server::start([]).await;
    let client = client(&[first.url(), second.url()]);
    let error = repeatable(&client, 0).await.unwrap_err();
    assert!(matches!(error, Error::Protocol(_)), "{error:?}");
    assert_eq!(second.connections(), 0);
}

#[tokio::test]
async fn when_all_hosts_fail_the_error_names_each() {
    let first = Server::start([Reply::Reset]).await;
    let (second, third) = (closed_port().await, Server::start([gateway()]).await);
    let hosts = [first.url(), second, third.url()];
    let error = repeatable(&client(&hosts), 0).await.unwrap_err();
    let Error::Protocol(error) = error else { panic!("{error:?}") };
    assert_eq!(error.status, 502, "the last host's answer is all there is");

    let first = Server::start([Reply::Reset]).await;
    let hosts = [first.url(), closed_port().await];
    let error = repeatable(&client(&hosts), 0).await.unwrap_err();
    let Error::Transport(error) = error else { panic!("{error:?}") };
    assert!(error.sent);
    for host in hosts {
        assert!(error.reason.contains(host.strip_prefix("http://").unwrap()), "{error}");
    }
}

#[tokio::test]
async fn a_dead_kept_connection_costs_a_second_try_on_a_single_host() {
    let answer = || Reply::Json(TOKEN_BODY);
    let server = Server::start([answer(), Reply::Reset, answer(), answer()]).await;
    let client = client(&[server.url()]);
    repeatable(&client, 0).await.unwrap();
    repeatable(&client, 0).await.unwrap();
    assert_eq!((server.requests().len(), server.connections()), (3, 2));
    repeatable(&client, 0).await.unwrap();
    assert_eq!(server.connections(), 2, "the new connection is kept");
}

#[tokio::test]
async fn the_second_try_is_the_last() {
    let server = Server::start([Reply::Json(TOKEN_BODY), Reply::Reset, Reply::Reset]).await;
    let client = client(&[server.url()]);
    repeatable(&client, 0).await.unwrap();
    let error = repeatable(&client, 0).await.unwrap_err();
    assert!(matches!(error, Error::Transport(error) if error.sent));
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn a_fresh_connection_that_breaks_is_not_tried_again_on_a_single_host() {
    let server = Server::start([Reply::Reset]).await;
    let error = repeatable(&client(&[server.url()]), 0).await.unwrap_err();
    assert!(matches!(error, Error::Transport(error) if error.sent));
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_call_that_counts_never_takes_a_kept_connection() {
    let server =
        Server::start([Reply::Json(TOKEN_BODY), Reply::Json(TOKEN_BODY), Reply::Json(TOKEN_BODY)])
            .await;
    let client = client(&[server.url()]);
    repeatable(&client, 0).await.unwrap();
    only_once(&client, 0).await.unwrap();
    only_once(&client, 0).await.unwrap();
    assert_eq!(server.connections(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_silent_host_leaves_the_next_its_share_of_the_time() {
    let first = Server::start([Reply::Stuck("")]).await;
    let second = Server::start([Reply::Json(TOKEN_BODY)]).await;
    let client = client(&[first.url(), second.url()]);
    let before = Instant::now();
    repeatable(&client, 0).await.unwrap();
    assert_eq!(before.elapsed().as_secs(), 4);
}

#[tokio::test(start_paused = true)]
async fn no_call_takes_longer_than_the_budget() {
    let stuck = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"access_tok";
    for script in ["", stuck] {
        for counts in [true, false] {
            let first = Server::start([Reply::Stuck(script)]).await;
            let second = Server::start([Reply::Stuck(script)]).await;
            let client = client(&[first.url(), second.url()]);
            let before = Instant::now();
            let result =
                if counts { only_once(&client, 0).await } else { repeatable(&client, 0).await };
            let Err(Error::Transport(error)) = result else { panic!("{result:?}") };
            assert!(error.sent, "{error}");
            // Timers have a resolution of a millisecond.
            assert!(before.elapsed() <= client.budget() + Duration::from_millis(2));
            assert!(before.elapsed() >= client.budget());
            assert_eq!(first.requests().len(), 1);
            assert_eq!(second.requests().len(), if counts { 0 } else { 1 });
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_cannot_be_connected_to_costs_the_connect_timeout() {
    let server = Server::start([Reply::Json(TOKEN_BODY)]).await;
    let address = server.address;
    let dial = tower::service_fn(move |host: http::Uri| async move {
        if host.host() != Some("127.0.0.1") {
            std::future::pending::<()>().await;
        }
        Ok::<_, io::Error>(TokioIo::new(TcpStream::connect(address).await?))
    });
    let hosts = ["http://lost.example".to_owned(), server.url()];
    let client = Client::with_connector(config(&hosts), dial).unwrap();
    let before = Instant::now();
    only_once(&client, 0).await.unwrap();
    assert_eq!(before.elapsed().as_secs(), 3);

    let client = Client::with_connector(config(&hosts[..1]), dial).unwrap();
    let error = only_once(&client, 0).await.unwrap_err();
    let Error::Transport(error) = error else { panic!("{error:?}") };
    assert!(!error.sent);
    assert_eq!(error.reason, "lost.example: no connection within 3.0 s");
}

#[tokio::test(start_paused = true)]
async fn no_host_is_tried_after_the_budget() {
    let dial = tower::service_fn(|_| std::future::pending::<io::Result<TokioIo<TcpStream>>>());
    let hosts: Vec<String> = (1..=4).map(|n| format!("http://lost{n}.example")).collect();
    let client = Client::with_connector(config(&hosts), dial).unwrap();
    let before = Instant::now();
    let error = only_once(&client, 0).await.unwrap_err();
    assert_eq!(before.elapsed().as_secs(), 8);
    let Error::Transport(error) = error else { panic!("{error:?}") };
    assert_eq!(error.reason.matches("no connection within").count(), 3, "{error}");
    assert!(!error.sent);
}

#[test]
fn a_call_can_move_to_a_task() {
    let client = Client::new(Config::default()).unwrap();
    let (app, secret) = (app(), secret());
    let call: Box<dyn Future<Output = _> + Send> = Box::new(client.token(&app, &secret));
    drop(call);
}

#[test]
fn configurations_that_cannot_work() {
    let check = |config: Config, expected| {
        assert_eq!(Client::new(config).map(drop), Err(expected));
    };
    check(config(&[]), ConfigError::NoHost);
    for host in ["ftp://x", "x", "/x", "https://a:b@x", "https://x/?q"] {
        check(config(&[host.to_owned()]), ConfigError::Host);
    }
    for pages in ["ftp://x", "x", "/x", "https://a:b@x", "https://x/?q"] {
        let pages = pages.parse().unwrap();
        check(Config { pages, ..Config::default() }, ConfigError::Pages);
    }
    for proxy in ["https://proxy:3128", "socks5://proxy:1080", "/"] {
        let proxy = Some(proxy.parse().unwrap());
        check(Config { proxy, ..Config::default() }, ConfigError::Proxy);
    }
    for pem in ["", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let ca_pem = Some(pem.as_bytes().to_vec());
        check(Config { ca_pem, ..Config::default() }, ConfigError::Certificates);
    }
    let call_timeout = Duration::ZERO;
    check(Config { call_timeout, ..Config::default() }, ConfigError::Timeout);
    let client = Client::new(Config::default()).unwrap();
    assert_eq!(client.budget(), Duration::from_secs(8));
    assert_eq!(client.exchange_budget(), Duration::from_secs(20));
}
