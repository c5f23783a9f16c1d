//! TLS with extra authorities, and the way through a proxy.

use std::{net::Ipv4Addr, sync::Arc};

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio_rustls::TlsAcceptor;
use wechat::{Client, Config, Error};

use crate::server::{Reply, Server, TOKEN_BODY, app, closed_port, config, secret};

/// A server's side of TLS for 127.0.0.1, and the certificate that a client has to trust.
fn tls() -> (TlsAcceptor, Vec<u8>) {
    let host = Ipv4Addr::LOCALHOST.to_string();
    let made = rcgen::generate_simple_self_signed([host]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let tls = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(tls)), made.cert.pem().into_bytes())
}

fn https(server: &Server) -> String {
    format!("https://{}", server.address)
}

#[tokio::test]
async fn an_extra_authority_is_trusted() {
    let (tls, ca_pem) = tls();
    let server = Server::start_tls([Reply::Json(TOKEN_BODY)], tls).await;
    let config = Config { ca_pem: Some(ca_pem), ..config(&[https(&server)]) };
    let client = Client::new(config).unwrap();
    client.token(&app(), &secret()).await.unwrap();
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn nobody_else_is_and_nothing_is_sent_to_them() {
    let impostor = Server::start_tls([], tls().0).await;
    let client = Client::new(config(&[https(&impostor)])).unwrap();
    let Err(Error::Transport(error)) = client.token(&app(), &secret()).await else { panic!() };
    assert!(!error.sent);
    assert!(error.reason.contains("invalid peer certificate: UnknownIssuer"), "{error}");
    assert!(impostor.requests().is_empty());

    let second = Server::start([Reply::Json(TOKEN_BODY)]).await;
    let client = Client::new(config(&[https(&impostor), second.url()])).unwrap();
    client.token(&app(), &secret()).await.unwrap();
    assert_eq!((impostor.requests().len(), second.requests().len()), (0, 1));
}

#[tokio::test]
async fn through_a_proxy_to_tls_and_to_plain_http() {
    let (tls, ca_pem) = tls();
    for secured in [true, false] {
        let script = [Reply::Json(TOKEN_BODY)];
        let (server, host) = if secured {
            let server = Server::start_tls(script, tls.clone()).await;
            let host = https(&server);
            (server, host)
        } else {
            let server = Server::start(script).await;
            let host = server.url();
            (server, host)
        };
        let proxy = Server::start([Reply::Tunnel(server.address)]).await;
        let address = format!("http://user:p%40ss@{}", proxy.address);
        let config = Config {
            ca_pem: Some(ca_pem.clone()),
            proxy: Some(address.parse().unwrap()),
            ..config(&[host])
        };
        assert!(!format!("{config:?}").contains("p%40ss"));

        Client::new(config).unwrap().token(&app(), &secret()).await.unwrap();
        let host = server.address;
        let head = format!(
            "CONNECT {host} HTTP/1.1\nHost: {host}\nProxy-Authorization: Basic dXNlcjpwQHNz\n\n"
        );
        assert_eq!(proxy.requests(), [head]);
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn plain_http_without_a_port_means_80_to_a_proxy() {
    let server = Server::start([Reply::Json(TOKEN_BODY)]).await;
    let proxy = Server::start([Reply::Tunnel(server.address)]).await;
    let proxy_url = proxy.url().parse().unwrap();
    let config = Config { proxy: Some(proxy_url), ..config(&["http://sim.example".to_owned()]) };
    Client::new(config).unwrap().token(&app(), &secret()).await.unwrap();
    assert_eq!(proxy.requests(), ["CONNECT sim.example:80 HTTP/1.1\nHost: sim.example:80\n\n"]);
    assert!(server.requests()[0].contains("\nhost: sim.example\n"));
}

#[tokio::test]
async fn a_proxy_that_refuses_or_is_gone() {
    let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
    let proxy = Server::start([Reply::Raw(refusal.into())]).await;
    let host = ["https://api.weixin.qq.com".to_owned()];
    for (proxy, part) in [
        (format!("http://user:c4n4ry@{}", proxy.address), "proxy authorization required"),
        (closed_port().await.replace("://", "://user:c4n4ry@"), "onnection refused"),
    ] {
        let config = Config { proxy: Some(proxy.parse().unwrap()), ..config(&host) };
        let client = Client::new(config).unwrap();
        let Err(Error::Transport(error)) = client.token(&app(), &secret()).await else { panic!() };
        assert!(!error.sent);
        assert!(error.reason.starts_with("api.weixin.qq.com: "), "{error}");
        assert!(error.reason.contains(part), "{error}");
        assert!(!error.reason.contains("c4n4ry"), "{error}");
    }
}
