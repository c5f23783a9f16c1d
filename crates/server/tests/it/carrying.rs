//! Calls that are carried, byte by byte: headers, bodies, connections, and what goes wrong with them.

use std::time::Duration;

use server::http::{Limits, ProblemType};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_util::task::TaskTracker;

use crate::{
    harness::{Answer, Setup, World, pass},
    sdk::Sdk,
    upstream::{Act, Upstream, json},
};

const PATH: &str = "/cgi-bin/some/thing";
const OK: &str = r#"{"errcode":0,"errmsg":"ok"}"#;
const REFUSED: &str = r#"{"errcode":40001,"errmsg":"invalid credential"}"#;

async fn worlds(acts: impl Into<Vec<Act>>) -> (World, Upstream) {
    with_limits(acts, Limits { kept_body: 4096, ..Limits::default() }).await
}

async fn with_limits(acts: impl Into<Vec<Act>>, limits: Limits) -> (World, Upstream) {
    let upstream = Upstream::start(&TaskTracker::new(), acts).await;
    let setup = Setup { limits, upstream: Some(upstream.address()), ..Setup::default() };
    (World::with(setup).await, upstream)
}

/// Opens a connection, writes the head of a call, and hands the connection over.
async fn begin(world: &World, sdk: &Sdk<'_>, method: &str, headers: &str) -> TcpStream {
    let mut stream = TcpStream::connect(world.api).await.unwrap();
    let token = sdk.token();
    let head =
        format!("{method} {PATH}?access_token={token} HTTP/1.1\r\nhost: xinfu\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

async fn rest(mut stream: TcpStream) -> Answer {
    let mut received = Vec::new();
    let _ = stream.read_to_end(&mut received).await;
    Answer::parse(&received).unwrap_or_else(|| panic!("no answer: {received:?}"))
}

fn busy(answer: &Answer) -> bool {
    answer.status == 200
        && answer.json()["errcode"] == -1
        && answer.json()["errmsg"].as_str().unwrap().contains("(xinfu: ")
}

#[tokio::test(start_paused = true)]
async fn what_is_between_two_parties_stays_between_them() {
    let reply = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive, x-odd\r\nx-odd: 1\r\n\
                 keep-alive: timeout=5\r\nproxy-authenticate: Basic\r\nx-wechat: yes\r\n\
                 content-type: text/plain\r\nset-cookie: a=b\r\nlocation: /?access_token=real-token-1\r\n\r\n{}";
    let (world, upstream) = worlds([Act::Reply(reply.into())]).await;
    let sdk = Sdk::of(&world).await;
    let headers = format!(
        "connection: close, x-mine\r\nx-mine: 1\r\nte: trailers\r\nupgrade: websocket\r\n\
         authorization: Bearer {}\r\ncookie: session=1\r\nx-forwarded-for: 10.0.0.1\r\n\
         referer: http://intern/?secret=1\r\naccept-encoding: gzip, br\r\nuser-agent: sdk/1\r\n\
         wechatmp-appid: wx1\r\naccept: */*\r\nproxy-connection: keep-alive\r\n",
        world.key
    );
    let answer = rest(begin(&world, &sdk, "GET", &headers).await).await;
    assert_eq!((answer.status, answer.body.as_slice()), (200, b"{}".as_slice()));
    assert_eq!(answer.header("x-wechat"), Some("yes"));
    assert_eq!(answer.header("content-type"), Some("text/plain"));
    for gone in ["x-odd", "keep-alive", "proxy-authenticate", "location"] {
        assert_eq!(answer.header(gone), None, "{gone}");
    }

    let seen = upstream.seen().remove(0);
    assert_eq!(seen.target(), format!("{PATH}?access_token=real-token-1"));
    assert_eq!(seen.header("host"), Some(upstream.address().to_string().as_str()));
    assert_eq!(seen.header("accept-encoding"), Some("identity"));
    for kept in ["user-agent", "wechatmp-appid", "accept"] {
        assert!(seen.header(kept).is_some(), "{kept}");
    }
    for gone in [
        "connection",
        "x-mine",
        "te",
        "upgrade",
        "authorization",
        "cookie",
        "x-forwarded-for",
        "referer",
        "proxy-connection",
        "x-request-id",
        "content-length",
        "transfer-encoding",
    ] {
        assert_eq!(seen.header(gone), None, "{gone}");
    }
    assert!(!seen.head.contains(&world.key) && !seen.head.contains("xt_"), "{}", seen.head);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_leads_elsewhere_takes_no_token_there() {
    let page = "<a href=\"/there?access_token=real-token-1\">there</a>";
    let reply = format!(
        "HTTP/1.1 302 Found\r\ncontent-length: {}\r\ncontent-type: text/html\r\n\
         location: /there?access_token=real-token-1\r\nrefresh: 0;/there?access_token=real-token-1\r\n\
         x-wechat: yes\r\n\r\n{page}",
        page.len()
    );
    let (world, _upstream) = worlds([Act::Reply(reply.into())]).await;
    let sdk = Sdk::of(&world).await;
    let answer = rest(begin(&world, &sdk, "GET", "connection: close\r\n").await).await;
    assert_eq!((answer.status, answer.body.as_slice()), (302, b"".as_slice()));
    assert_eq!(answer.header("x-wechat"), Some("yes"));
    assert!(!answer.head.contains("real-token-1"), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn every_method_and_every_body_arrives() {
    let (world, upstream) = worlds([Act::Reply(json(OK))]).await;
    let sdk = Sdk::of(&world).await;
    let small = "中文 \u{0} \u{1f600}".repeat(3).into_bytes();
    let large: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PURGE"] {
        for body in [&Vec::new(), &small, &large] {
            for chunked in [false, true] {
                let framing = if chunked {
                    "transfer-encoding: chunked\r\n".to_owned()
                } else {
                    format!("content-length: {}\r\n", body.len())
                };
                let headers = format!("connection: close\r\ncontent-type: x/y\r\n{framing}");
                let mut stream = begin(&world, &sdk, method, &headers).await;
                if chunked {
                    for piece in body.chunks(30_000) {
                        stream
                            .write_all(format!("{:x}\r\n", piece.len()).as_bytes())
                            .await
                            .unwrap();
                        stream.write_all(piece).await.unwrap();
                        stream.write_all(b"\r\n").await.unwrap();
                    }
                    stream.write_all(b"0\r\n\r\n").await.unwrap();
                } else {
                    stream.write_all(body).await.unwrap();
                }
                let answer = rest(stream).await;
                let about = format!("{method} {} bytes chunked={chunked}: {answer:?}", body.len());
                assert_eq!(answer.body, OK.as_bytes(), "{about}");
                let seen = upstream.seen().pop().unwrap();
                assert!(seen.head.starts_with(&format!("{method} ")), "{about}");
                assert!(seen.body == *body, "{about}");
                assert_eq!(seen.header("content-type"), Some("x/y"), "{about}");
                if body.is_empty() && ["POST", "PUT", "PATCH"].contains(&method) {
                    assert_eq!(seen.header("content-length"), Some("0"), "{about}");
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_has_no_body_and_keeps_its_length() {
    let reply = "HTTP/1.1 200 OK\r\ncontent-length: 12345\r\naccept-ranges: bytes\r\n\r\n";
    let (world, _upstream) = worlds([Act::Reply(reply.into())]).await;
    let sdk = Sdk::of(&world).await;
    let answer = rest(begin(&world, &sdk, "HEAD", "connection: close\r\n").await).await;
    assert_eq!((answer.status, answer.header("content-length")), (200, Some("12345")));
    assert!(answer.body.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_range_is_asked_for_and_passed_on() {
    let reply = "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 2-3/9\r\n\
                 content-type: image/jpeg\r\ncontent-length: 2\r\n\r\n\u{1}\u{2}";
    let (world, upstream) = worlds([Act::Reply(reply.into())]).await;
    let sdk = Sdk::of(&world).await;
    let answer =
        rest(begin(&world, &sdk, "GET", "connection: close\r\nrange: bytes=2-3\r\n").await).await;
    assert_eq!((answer.status, answer.body.as_slice()), (206, [1, 2].as_slice()));
    assert_eq!(answer.header("content-range"), Some("bytes 2-3/9"));
    assert_eq!(upstream.seen()[0].header("range"), Some("bytes=2-3"));
}

#[tokio::test(start_paused = true)]
async fn redirects_are_passed_on_and_not_followed() {
    let reply =
        "HTTP/1.1 302 Found\r\nlocation: https://elsewhere.example/\r\ncontent-length: 0\r\n\r\n";
    let (world, upstream) = worlds([Act::Reply(reply.into())]).await;
    let sdk = Sdk::of(&world).await;
    let answer = rest(begin(&world, &sdk, "GET", "connection: close\r\n").await).await;
    assert_eq!(
        (answer.status, answer.header("location")),
        (302, Some("https://elsewhere.example/"))
    );
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_waits_for_100_is_told_to_go_on() {
    let (world, upstream) = worlds([Act::Reply(json(OK))]).await;
    let sdk = Sdk::of(&world).await;
    let headers = "connection: close\r\nexpect: 100-continue\r\ncontent-length: 5\r\n";
    let mut stream = begin(&world, &sdk, "POST", headers).await;
    let mut told = [0; 25];
    stream.read_exact(&mut told).await.unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"12345").await.unwrap();
    assert_eq!(rest(stream).await.body, OK.as_bytes());
    let seen = upstream.seen().remove(0);
    assert_eq!((seen.header("expect"), seen.body.as_slice()), (None, b"12345".as_slice()));

    // One that is refused is not told to send what nobody reads.
    sdk.take("xt_no");
    let refused = rest(begin(&world, &sdk, "POST", headers).await).await;
    assert_eq!(refused.json()["errcode"], 40001);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_to_the_end_hears_why_it_is_refused() {
    let (world, upstream) = worlds([Act::Reply(json(OK))]).await;
    let sdk = Sdk::of(&world).await;
    sdk.take("xt_no");
    let body = vec![7; 30_000_000];
    let headers = format!("connection: close\r\ncontent-length: {}\r\n", body.len());
    let mut stream = begin(&world, &sdk, "POST", &headers).await;
    stream.write_all(&body).await.unwrap();
    assert_eq!(rest(stream).await.json()["errcode"], 40001);
    assert!(upstream.seen().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_early_answer_is_passed_on_while_the_client_still_sends() {
    for act in [Act::ReplyEarly(json(OK)), Act::ReplyEarlyAndClose(json(OK))] {
        let (world, upstream) = worlds([act.clone(), Act::Reply(json(OK))]).await;
        let sdk = Sdk::of(&world).await;
        let headers = "content-length: 2000000\r\n";
        let mut stream = begin(&world, &sdk, "POST", headers).await;
        stream.write_all(&[1; 10_000]).await.unwrap();
        let mut received = Vec::new();
        while !received.ends_with(OK.as_bytes()) {
            assert_ne!(stream.read_buf(&mut received).await.unwrap(), 0, "{act:?}");
        }
        // It has its answer, and may send the rest without an error.
        stream.write_all(&vec![1; 1_990_000]).await.unwrap();
        drop(stream);
        // Nothing of the body was taken for another call.
        let next = sdk.call("POST", PATH, "", Some("{}")).await;
        assert_eq!(next.body, OK.as_bytes(), "{act:?}");
        let last = upstream.seen().pop().unwrap();
        assert_eq!(last.body, b"{}", "{act:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_ends_its_call() {
    let pieces = vec![b"HTTP/1.1 200 OK\r\ncontent-type: video/mp4\r\n\r\n".to_vec(); 1]
        .into_iter()
        .chain((0..1000).map(|_| vec![0; 50_000]));
    let act = Act::Pieces(pieces.collect(), Duration::from_millis(100));
    let (world, upstream) = worlds([act, Act::Silence, Act::Reply(json(OK))]).await;
    let sdk = Sdk::of(&world).await;
    sdk.fetch().await;
    // In the middle of the answer,
    let mut stream = begin(&world, &sdk, "GET", "").await;
    let mut some = [0; 100_000];
    stream.read_exact(&mut some).await.unwrap();
    let open = upstream.open();
    drop(stream);
    pass(1).await;
    assert_eq!(upstream.open(), open - 1);
    // and while waiting for one.
    let stream = begin(&world, &sdk, "GET", "").await;
    pass(1).await;
    let open = upstream.open();
    drop(stream);
    pass(1).await;
    assert_eq!(upstream.open(), open - 1);
    assert_eq!(sdk.call("GET", PATH, "", None).await.body, OK.as_bytes());
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_breaks_off_reaches_wechat_as_one_that_breaks_off() {
    let (world, upstream) = worlds([Act::Reply(json(OK))]).await;
    let sdk = Sdk::of(&world).await;
    let mut stream = begin(&world, &sdk, "POST", "content-length: 100000\r\n").await;
    stream.write_all(&[1; 50_000]).await.unwrap();
    pass(1).await;
    drop(stream);
    pass(1).await;
    // It was begun, and no whole call was made of it.
    assert!(upstream.seen().iter().all(|seen| seen.body.is_empty()));
    // One that stops coming is given up.
    let mut stream =
        begin(&world, &sdk, "POST", "connection: close\r\ncontent-length: 100000\r\n").await;
    stream.write_all(&[1; 50_000]).await.unwrap();
    let answer = rest(stream).await;
    assert_eq!(answer.json()["errcode"], 47001, "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_is_too_large_is_refused() {
    let limits = Limits { kept_body: 4096, call_body: 20_000, ..Limits::default() };
    let (world, upstream) = with_limits([Act::Reply(json(OK))], limits).await;
    let sdk = Sdk::of(&world).await;
    for framing in ["content-length: 30000\r\n", "transfer-encoding: chunked\r\n"] {
        let mut stream =
            begin(&world, &sdk, "POST", &format!("connection: close\r\n{framing}")).await;
        if framing.starts_with("transfer") {
            stream.write_all(b"7530\r\n").await.unwrap();
        }
        stream.write_all(&[1; 30_000]).await.unwrap();
        if framing.starts_with("transfer") {
            stream.write_all(b"\r\n0\r\n\r\n").await.unwrap();
        }
        let answer = rest(stream).await;
        assert_eq!(answer.json()["errcode"], 45001, "{answer:?}");
    }
    assert!(upstream.seen().iter().all(|seen| seen.body.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn a_method_whose_answer_shows_the_call_is_not_carried() {
    let (world, upstream) = worlds([Act::Reply(json(OK))]).await;
    let sdk = Sdk::of(&world).await;
    for method in ["TRACE", "trace", "TRACK"] {
        assert_eq!(sdk.call(method, PATH, "", None).await.json()["errcode"], 48001, "{method}");
    }
    let proxied = format!("/wx/shop{PATH}");
    let answer = world.ask("TRACE", &proxied, Some(&world.key), None).await;
    answer.check_problem(ProblemType::Forbidden);
    assert!(upstream.seen().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_kept_connection_is_used_again_and_a_dead_one_is_not() {
    let chunks = format!(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{OK}\r\n0\r\n\r\n",
        OK.len()
    );
    let acts = [
        Act::Reply(json(OK)),
        Act::Reply(chunks.into()),
        Act::ReplyAndClose(json(OK)),
        Act::Reply(json(OK)),
    ];
    let (world, upstream) = worlds(acts).await;
    let sdk = Sdk::of(&world).await;
    for _ in 0..4 {
        let answer = sdk.call("POST", PATH, "", Some("{}")).await;
        assert!(String::from_utf8_lossy(&answer.body).contains(OK), "{answer:?}");
    }
    // One that was idle for long is dropped.
    pass(21).await;
    assert_eq!(sdk.call("POST", PATH, "", Some("{}")).await.body, OK.as_bytes());
    let connections: Vec<_> = upstream.seen().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections[0], connections[1]);
    assert_eq!(connections[1], connections[2]);
    assert_ne!(connections[2], connections[3]);
    assert_ne!(connections[3], connections[4]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_buffer_has_grown_is_not_kept() {
    let (world, upstream) = worlds([Act::Reply(json(OK))]).await;
    let sdk = Sdk::of(&world).await;
    for length in [60_000, 100_000, 10] {
        let answer = sdk.call("POST", PATH, "", Some(&"x".repeat(length))).await;
        assert_eq!(answer.body, OK.as_bytes());
    }
    let connections: Vec<_> = upstream.seen().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections[0], connections[1]);
    assert_ne!(connections[1], connections[2]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_with_an_answer_half_read_is_not_used_again() {
    let early = Act::Pieces(
        vec![json(OK), b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil".to_vec()],
        Duration::ZERO,
    );
    let (world, upstream) = worlds([early, Act::Reply(json(OK))]).await;
    let sdk = Sdk::of(&world).await;
    for _ in 0..3 {
        assert_eq!(sdk.call("GET", PATH, "", None).await.body, OK.as_bytes());
        pass(1).await;
    }
    assert_eq!(upstream.seen().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_twice_after_a_failure_that_leaves_doubt() {
    let truncated = b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{\"errcode\":".to_vec();
    let garbage = b"nonsense\r\n\r\n".to_vec();
    for (act, streamed) in [
        (Act::Reset, false),
        (Act::Close, false),
        (Act::Silence, false),
        (Act::Deaf, false),
        (Act::ReplyAndClose(truncated), false),
        (Act::ReplyAndClose(garbage), false),
        (Act::Reset, true),
        (Act::Close, true),
        (Act::Silence, true),
    ] {
        let (world, upstream) =
            worlds([Act::Reply(json(OK)), act.clone(), Act::Reply(json(OK))]).await;
        let sdk = Sdk::of(&world).await;
        // On a connection that has served before as well as on a new one.
        for kept in [true, false] {
            if kept {
                sdk.call("GET", PATH, "", None).await;
            }
            let before = upstream.seen().len();
            let body = if streamed { "x".repeat(9_000) } else { "{}".to_owned() };
            let answer = sdk.call("POST", PATH, "", Some(&body)).await;
            assert_eq!(upstream.seen().len() - before, 1, "{act:?} kept={kept}");
            if kept {
                assert!(busy(&answer), "{act:?}: {answer:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_late_breaks_off_here_too() {
    let begun = format!("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{}", "x".repeat(10_000));
    let (world, _upstream) = worlds([Act::ReplyAndClose(begun.into())]).await;
    let sdk = Sdk::of(&world).await;
    let answer = rest(begin(&world, &sdk, "GET", "connection: close\r\n").await).await;
    assert_eq!(answer.header("content-length"), Some("100000"));
    assert!(answer.body.len() <= 10_000);
}

#[tokio::test(start_paused = true)]
async fn only_a_code_at_the_top_and_at_the_beginning_is_a_refusal() {
    let deep =
        r#"{"user":{"errcode":40001},"list":[{"errcode":42001}],"text":"\"errcode\":40001"}"#;
    let late = format!(r#"{{"text":"{}","errcode":40001}}"#, "x".repeat(5_000));
    let zipped = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 17\r\n\r\n{\"errcode\":40001}".to_vec();
    let text = br#"HTTP/1.1 200 OK
content-type: text/plain
content-length: 22

{"errcode" : "42001" }"#;
    let text = String::from_utf8(text.to_vec()).unwrap().replace('\n', "\r\n").into_bytes();
    let split: Vec<Vec<u8>> = json(REFUSED).chunks(7).map(<[u8]>::to_vec).collect();
    for (answer, sent_again) in [
        (Act::Reply(json(deep)), false),
        (Act::Reply(json(&late)), false),
        (Act::Reply(zipped), false),
        (Act::Reply(json(r#"[{"errcode":40001}]"#)), false),
        (Act::Reply(json(REFUSED)), true),
        (Act::Reply(text), true),
        (Act::Pieces(split, Duration::from_millis(10)), true),
    ] {
        let (world, upstream) =
            worlds([Act::Reply(json(OK)), answer.clone(), Act::Reply(json(OK))]).await;
        let sdk = Sdk::of(&world).await;
        sdk.call("GET", PATH, "", None).await;
        upstream.rotate();
        let heard = sdk.call("GET", PATH, "", None).await;
        let sent = upstream.seen().len();
        assert_eq!(sent, if sent_again { 3 } else { 2 }, "{answer:?}: {heard:?}");
        assert_eq!(heard.body == OK.as_bytes(), sent_again, "{answer:?}: {heard:?}");
        if sent_again {
            assert!(upstream.seen()[2].target().ends_with("access_token=real-token-2"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_goes_on_is_passed_on_as_it_comes() {
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: audio/amr\r\n\r\n"
        .to_vec();
    let piece = |text: &str| format!("{:x}\r\n{text}\r\n", text.len()).into_bytes();
    let act = Act::Pieces(
        vec![head, piece("first"), piece("second"), b"0\r\n\r\n".to_vec()],
        Duration::from_secs(20),
    );
    let (world, _upstream) = worlds([act]).await;
    let sdk = Sdk::of(&world).await;
    let mut stream = begin(&world, &sdk, "GET", "connection: close\r\n").await;
    let started = tokio::time::Instant::now();
    let mut received = Vec::new();
    while !received.ends_with(b"first\r\n") {
        assert_ne!(stream.read_buf(&mut received).await.unwrap(), 0);
    }
    assert!(started.elapsed() < Duration::from_secs(25));
    // Each piece is within the patience, all together they are not.
    let _ = stream.read_to_end(&mut received).await;
    assert!(received.ends_with(b"second\r\n0\r\n\r\n"), "{}", String::from_utf8_lossy(&received));
}

#[tokio::test(start_paused = true)]
async fn bodies_beyond_the_room_are_passed_on_without_being_kept() {
    for (length, sent) in [(1024, 2), (3000, 1)] {
        let limits = Limits { kept_body: 4096, kept_bodies: 2048, ..Limits::default() };
        let acts = [Act::Reply(json(OK)), Act::Reply(json(REFUSED))];
        let (world, upstream) = with_limits(acts, limits).await;
        let sdk = Sdk::of(&world).await;
        sdk.call("GET", PATH, "", None).await;
        upstream.rotate();
        let answer = sdk.call("POST", PATH, "", Some(&"x".repeat(length))).await;
        assert_eq!(answer.body, REFUSED.as_bytes());
        let seen = upstream.seen().split_off(1);
        assert_eq!(seen.len(), sent, "{length}");
        assert!(seen.iter().all(|seen| seen.body.len() == length));
    }
}
