//! Bad requests of every kind, to every route: a clear refusal or a closed connection, and the
//! server goes on.

use axum::http::Method;
use server::http::{Limits, Operation, ProblemType, ROUTES, Route};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Duration, Instant, timeout},
};

use crate::{
    harness::{APP, Answer, Setup, World},
    policy::{sample, success},
};

/// The answer is a refusal of a client's error, or there is none; and the server goes on.
async fn check_refused(world: &World, what: &str, request: &[u8]) {
    let received = world.exchange(request).await;
    if let Some(answer) = Answer::parse(&received) {
        let shown = String::from_utf8_lossy(&request[..request.len().min(80)]).into_owned();
        assert!((400..500).contains(&answer.status), "{what}: {shown}: {answer:?}");
    } else {
        assert!(received.is_empty(), "{what}: half an answer");
    }
    assert_eq!(world.ask("GET", "/healthz", None, None).await.status, 200, "{what}");
}

/// The request line and the usual headers of a route's sample request, without the empty line.
async fn head(world: &World, route: &Route) -> String {
    let (path, _) = sample(world, route).await;
    let (method, key) = (&route.method, &world.key);
    format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {key}\r\n"
    )
}

#[tokio::test(start_paused = true)]
async fn broken_requests() {
    for world in [World::new().await, World::on_sqlite().await] {
        check_broken_requests(&world).await;
    }
}

async fn check_broken_requests(world: &World) {
    for route in &ROUTES {
        let (path, _) = sample(world, route).await;
        let method = route.method.as_str();
        let head = head(world, route).await;
        let many: String = (0..101).map(|n| format!("x-{n}: y\r\n")).collect();
        let huge = format!("x: {}\r\n", "y".repeat(100_000));
        for (what, request) in [
            ("no version", format!("{method} {path}\r\n\r\n")),
            ("another version", format!("{method} {path} HTTP/3.0\r\nhost: x\r\n\r\n")),
            ("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
            ("a blank in the path", format!("{method} {path} x HTTP/1.1\r\nhost: x\r\n\r\n")),
            ("a method with a comma", format!("GE,T {path} HTTP/1.1\r\nhost: x\r\n\r\n")),
            ("NUL in the path", format!("{method} {path}\0 HTTP/1.1\r\nhost: x\r\n\r\n")),
            ("a header without colon", format!("{head}nonsense\r\n\r\n")),
            ("a blank before the colon", format!("{head}x : y\r\n\r\n")),
            ("NUL in a header", format!("{head}x: a\0b\r\n\r\n")),
            ("a folded header", format!("{head}x: a\r\n b\r\n\r\n")),
            ("many headers", format!("{head}{many}\r\n")),
            ("a huge header", format!("{head}{huge}\r\n")),
            ("a huge path", format!("{method} {path}?{} HTTP/1.1\r\n\r\n", "x".repeat(70_000))),
            ("two lengths", format!("{head}content-length: 3\r\ncontent-length: 4\r\n\r\nabcd")),
            ("a length that is none", format!("{head}content-length: -1\r\n\r\n")),
            ("a length too long", format!("{head}content-length: 99999999999999999999\r\n\r\n")),
            ("a strange coding", format!("{head}transfer-encoding: gzip\r\n\r\n")),
            ("no TLS here", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0".to_owned()),
        ] {
            check_refused(world, what, request.as_bytes()).await;
        }
        let mut bytes = format!("{method} {path}").into_bytes();
        bytes.extend_from_slice(b"/\xff\xfe HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        check_refused(world, "raw bytes in the path", &bytes).await;
        bytes = head.clone().into_bytes();
        bytes.extend_from_slice(b"authorization: Bearer \xff\xfe\r\n\r\n");
        if route.operation != Operation::OpenApi && route.path.starts_with("/v1") {
            check_refused(world, "raw bytes in the key", &bytes).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn unknown_parameters_are_refused_everywhere() {
    for world in [World::new().await, World::on_sqlite().await] {
        check_unknown_parameters_are_refused_everywhere(&world).await;
    }
}

async fn check_unknown_parameters_are_refused_everywhere(world: &World) {
    for route in &ROUTES {
        let (path, body) = sample(world, route).await;
        for query in
            ["x=1", "access_token=secret-in-a-query", "%00=1", "lang=en&lang=en&x", "=", "&&a"]
        {
            let path = format!("{path}?{query}");
            let answer =
                world.ask(route.method.as_str(), &path, Some(&world.key), body.as_deref()).await;
            let problem = answer.check_problem(ProblemType::Invalid);
            assert!(!problem.to_string().contains("secret-in"), "{problem}");
        }
        for query in ["%", "a=%f", "%ff", "%c3%28=1"] {
            let path = format!("{path}?{query}");
            let answer =
                world.ask(route.method.as_str(), &path, Some(&world.key), body.as_deref()).await;
            assert_eq!(answer.status, 400, "{path}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn bodies_that_are_no_json() {
    for world in [World::new().await, World::on_sqlite().await] {
        check_bodies_that_are_no_json(&world).await;
    }
}

async fn check_bodies_that_are_no_json(world: &World) {
    for route in ROUTES.iter().filter(|route| route.method == Method::POST) {
        let head = head(world, route).await;
        let (_, body) = sample(world, route).await;
        let body = body.unwrap();
        let length = body.len();
        for wrong in [
            "",
            "content-type: text/plain\r\n",
            "content-type: application/x-www-form-urlencoded\r\n",
            "content-type: application/jsonp\r\n",
            "content-type: application/json; charset=gbk\r\n",
            "content-type: application/json\r\ncontent-type: application/json\r\n",
            "content-type: application/json\r\ncontent-encoding: gzip\r\n",
            "content-type: \r\n",
        ] {
            let request = format!("{head}{wrong}content-length: {length}\r\n\r\n{body}");
            let answer = Answer::parse(&world.exchange(request.as_bytes()).await).unwrap();
            answer.check_problem(ProblemType::UnsupportedMediaType);
        }
        for fine in [
            "application/json; charset=UTF-8",
            "Application/JSON",
            "application/json;charset=\"utf-8\"",
        ] {
            let request =
                format!("{head}content-type: {fine}\r\ncontent-length: {length}\r\n\r\n{body}");
            let answer = Answer::parse(&world.exchange(request.as_bytes()).await).unwrap();
            assert_eq!(answer.status, 200, "{fine}");
        }
        let json = format!("{head}content-type: application/json\r\n");
        let deep = format!("{}{}", "[".repeat(8000), "]".repeat(8000));
        let deep_field = format!("{{\"x\":{}1{}}}", "{\"y\":".repeat(2000), "}".repeat(2000));
        for (what, body) in [
            ("nothing", String::new()),
            ("deep", deep),
            ("deep in a field", deep_field),
            ("NUL", "\0".repeat(100)),
            ("a lone surrogate", r#"{"url":"\ud800","openids":["\ud800"]}"#.to_owned()),
            ("a big number", format!("{{\"errcode\":{}}}", "9".repeat(5000))),
            ("a list", "[1,2,3]".to_owned()),
            ("two values", format!("{body}{body}")),
        ] {
            let length = body.len();
            let request = format!("{json}content-length: {length}\r\n\r\n{body}");
            let answer = Answer::parse(&world.exchange(request.as_bytes()).await);
            let answer = answer.unwrap_or_else(|| panic!("no answer to {what}"));
            assert_eq!(answer.status, 400, "{what}: {answer:?}");
        }
        let mut bytes = format!("{json}content-length: 11\r\n\r\n").into_bytes();
        bytes.extend_from_slice(b"{\"url\":\"\xff\"}");
        let answer = Answer::parse(&world.exchange(&bytes).await).unwrap();
        assert_eq!(answer.status, 400, "invalid UTF-8");

        let chunked = format!("{json}transfer-encoding: chunked\r\n\r\n");
        for garbage in ["zz\r\n", "-1\r\n", "ffffffffffffffffff\r\n", "3\r\nabcdef\r\n", "1;x\r\na"]
        {
            check_refused(world, garbage, format!("{chunked}{garbage}").as_bytes()).await;
        }
        let smuggled =
            format!("{json}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n");
        check_refused(world, "both lengths", smuggled.as_bytes()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn bodies_that_are_too_large() {
    for world in [World::new().await, World::on_sqlite().await] {
        check_bodies_that_are_too_large(&world).await;
    }
}

async fn check_bodies_that_are_too_large(world: &World) {
    let large = vec![b' '; 10 << 20];
    for route in &ROUTES {
        let head = head(world, route).await;
        let json = format!("{head}content-type: application/json\r\n");
        // Announced: refused before it is read.
        let mut request = format!("{json}content-length: {}\r\n\r\n", large.len()).into_bytes();
        let mut stream = TcpStream::connect(world.api).await.unwrap();
        stream.write_all(&request).await.unwrap();
        let mut received = Vec::new();
        if route.method == Method::POST {
            let _ = stream.read_to_end(&mut received).await;
            let answer = Answer::parse(&received).unwrap();
            answer.check_problem(ProblemType::BodyTooLarge);
        }
        drop(stream);
        request.extend_from_slice(&large);
        let received = world.exchange(&request).await;
        if let Some(answer) = Answer::parse(&received) {
            let expected = if route.method == Method::POST { 413 } else { success(route) };
            assert_eq!(answer.status, expected, "{}", route.path);
        }
        // Not announced: read no further than the limit.
        let mut request = format!("{json}transfer-encoding: chunked\r\n\r\n").into_bytes();
        for chunk in large.chunks(1 << 16) {
            request.extend_from_slice(b"10000\r\n");
            request.extend_from_slice(chunk);
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"0\r\n\r\n");
        let received = world.exchange(&request).await;
        if let Some(answer) = Answer::parse(&received) {
            let expected = if route.method == Method::POST { 413 } else { success(route) };
            assert_eq!(answer.status, expected, "{}", route.path);
        }
        assert_eq!(world.ask("GET", "/healthz", None, None).await.status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn slow_clients_are_let_go() {
    let world = World::new().await;
    // The head comes byte by byte.
    let begun = Instant::now();
    let mut stream = TcpStream::connect(world.api).await.unwrap();
    for byte in b"GET /healthz HTTP/1.1\r\nx: ".iter().chain(std::iter::repeat(&b'y')) {
        if stream.write_all(&[*byte]).await.is_err() || begun.elapsed().as_secs() > 60 {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(begun.elapsed().as_secs() <= 13, "{:?}", begun.elapsed());

    // The body never comes.
    let begun = Instant::now();
    let key = &world.key;
    let request = format!(
        "POST /v1/apps/{APP}/jssdk/config HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         authorization: Bearer {key}\r\ncontent-type: application/json\r\n\
         content-length: 100\r\n\r\n{{"
    );
    let answer = Answer::parse(&world.exchange(request.as_bytes()).await).unwrap();
    answer.check_problem(ProblemType::BodyTimeout);
    assert_eq!(begun.elapsed().as_secs(), 30);

    // The body comes byte by byte, and nobody knows whose it is.
    let begun = Instant::now();
    let mut stream = TcpStream::connect(world.api).await.unwrap();
    let head = b"POST /cgi-bin/token HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 99\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let mut answer = [0; 512];
    let length = loop {
        stream.write_all(b"x").await.unwrap();
        if let Ok(read) = timeout(Duration::from_secs(7), stream.read(&mut answer)).await {
            break read.unwrap();
        }
    };
    let answer = String::from_utf8_lossy(&answer[..length]);
    assert!(answer.contains("\"errcode\":-1"), "{answer}");
    assert_eq!(begun.elapsed().as_secs(), 30);

    // Nothing comes at all.
    let begun = Instant::now();
    assert!(world.exchange(b"").await.is_empty());
    assert_eq!(begun.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_no_answers_is_let_go() {
    let limits = Limits { connections: 1, ..Limits::default() };
    let world = World::with(Setup { limits, ..Setup::default() }).await;
    let mut greedy = TcpStream::connect(world.api).await.unwrap();
    let begun = Instant::now();
    let requests = b"GET /v1/openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
    let second = Duration::from_secs(1);
    // Until nothing goes through any more, in either direction.
    while let Ok(written) = timeout(second, greedy.write_all(&requests)).await {
        written.unwrap();
    }
    // The only place is free again after a while.
    assert_eq!(world.ask("GET", "/healthz", None, None).await.status, 200);
    assert!(begun.elapsed().as_secs() <= 32, "{:?}", begun.elapsed());
    drop(greedy);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_request_is_refused_with_a_status_alone() {
    let usual = World::new().await;
    let limits = Limits { header_bytes: 1 << 20, ..Limits::default() };
    let roomy = World::with(Setup { limits, ..Setup::default() }).await;
    let long = "x".repeat(70_000);
    for (world, request, status) in [
        (&usual, "GET /healthz\r\n\r\n".to_owned(), 400),
        (&usual, "GET /healthz HTTP/1.1\r\nnonsense\r\n\r\n".to_owned(), 400),
        (&usual, format!("GET /healthz HTTP/1.1\r\nx: {long}\r\n\r\n"), 431),
        (&roomy, format!("GET /healthz?{long} HTTP/1.1\r\n\r\n"), 414),
    ] {
        let answer = Answer::parse(&world.exchange(request.as_bytes()).await).unwrap();
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.body.is_empty() && answer.header("x-request-id").is_none(), "{answer:?}");
    }
    let told = "with 400, 414 or 431, an empty body and no request id";
    assert!(server::http::problems_markdown().contains(told));
    assert!(server::http::openapi().contains(told));
}

#[tokio::test(start_paused = true)]
async fn odd_targets() {
    for world in [World::new().await, World::on_sqlite().await] {
        check_odd_targets(&world).await;
    }
}

async fn check_odd_targets(world: &World) {
    let key = &world.key;
    for (target, status) in [
        ("*", 404),
        ("http://elsewhere/healthz", 200),
        ("http://elsewhere", 200),
        ("/healthz?", 200),
        ("/v1/apps/shop/token#x", 400),
        ("/..%2f..%2fetc%2fpasswd", 200),
        ("/v1/..%2f..%2fetc%2fpasswd", 404),
        ("/v1/apps/{app}/token", 404),
        ("/v1/apps/:app/token", 404),
        ("/v1/apps/*/token", 404),
        ("/v1/apps/shop;x=1/token", 404),
        ("/v1/apps/shop\\token", 404),
    ] {
        let request = format!(
            "GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             authorization: Bearer {key}\r\n\r\n"
        );
        let answer = Answer::parse(&world.exchange(request.as_bytes()).await).unwrap();
        // A fragment is no part of a target; hyper drops it or refuses it.
        let dropped = target.contains('#') && answer.status == 200;
        assert!(answer.status == status || dropped, "{target}: {answer:?}");
    }
    check_refused(
        world,
        "CONNECT",
        b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    )
    .await;
    check_refused(world, "OPTIONS", b"OPTIONS * HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await;
}
