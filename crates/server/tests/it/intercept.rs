//! The listener in WeChat's place, its local authority, and the way to WeChat beside both.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use clock::{Clock, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, NameConstraints,
};
use rustls::{
    ClientConfig, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    time_provider::TimeProvider,
};
use server::intercept::{Authority, InterceptError, NAMES};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    harness::{APP, Answer, OPENID, START, Setup, World, pass},
    process::{Folder, PATIENCE, SimProcess},
};

const DAY: u64 = 86_400;

/// A folder with an authority as the command writes it.
fn authority(now: Timestamp) -> TempDir {
    let folder = TempDir::new().unwrap();
    let made = Authority::make(now).unwrap();
    let path = folder.path();
    std::fs::create_dir(path.join("private")).unwrap();
    write(&path.join("ca.pem"), &made.root_pem, 0o644);
    write(&path.join("private/issuer.pem"), &made.issuer_pem, 0o644);
    write(&path.join("private/issuer.key"), &made.key_pem, 0o600);
    folder
}

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// What somebody could sign who has the key of this authority.
fn signed(folder: &Path, name: &str) -> CertificateDer<'static> {
    let key = KeyPair::from_pem(&read(&folder.join("private/issuer.key"))).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read(&folder.join("private/issuer.pem")), key).unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().unwrap();
    let made = params.signed_by(&key, &issuer).unwrap();
    write(&folder.join("leaf.pem"), &made.pem(), 0o644);
    made.into()
}

fn roots(folder: &Path) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca.pem")).unwrap()).unwrap();
    roots
}

/// Whether somebody who trusts these roots believes that the authority's leaf belongs to a name.
fn is_believed(roots: RootCertStore, folder: &Path, leaf: &CertificateDer<'_>, name: &str) -> bool {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
    let verifier = verifier.build().unwrap();
    let issuer = CertificateDer::from_pem_file(folder.join("private/issuer.pem")).unwrap();
    let asked = ServerName::try_from(name).unwrap();
    let now = Clock::real().now().as_secs().try_into().unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
    verifier.verify_server_cert(leaf, &[issuer], &asked, &[], now).is_ok()
}

#[test]
fn the_authority_is_good_for_wechats_names_only() {
    let folder = authority(Clock::real().now());
    let folder = folder.path();
    for (name, is_good) in [
        ("api.weixin.qq.com", true),
        ("hk.api.weixin.qq.com", true),
        ("example.com", false),
        ("qq.com", false),
        ("weixin.qq.com.evil.com", false),
        ("evilweixin.qq.com", false),
        ("api.mch.weixin.qq.com", false),
        ("127.0.0.1", false),
        ("::1", false),
    ] {
        let leaf = signed(folder, name);
        assert_eq!(is_believed(roots(folder), folder, &leaf, name), is_good, "{name}");
        // Java does not look for limits in what it was told to trust; those below have to do.
        let mut careless = roots(folder);
        careless.roots[0].name_constraints = None;
        assert_eq!(is_believed(careless, folder, &leaf, name), is_good, "{name}");

        let flag = if name.parse::<IpAddr>().is_ok() { "-verify_ip" } else { "-verify_hostname" };
        let verified = Command::new("openssl")
            .current_dir(folder)
            .args(["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", "ca.pem"])
            .args(["-untrusted", "private/issuer.pem", flag, name, "leaf.pem"])
            .output()
            .unwrap();
        let said = format!("{verified:?}");
        assert_eq!(verified.status.success(), is_good, "{name}: {said}");
        assert!(is_good || said.contains("subtree violation"), "{name}: {said}");
    }
}

/// The limits that an authority must have.
fn limits(depth: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(depth));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("weixin.qq.com".to_owned())],
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([0; 4], 0)),
            GeneralSubtree::DnsName("mch.weixin.qq.com".to_owned()),
            GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix([0; 16], 0)),
        ],
    });
    params
}

/// Each takes one of them away.
const WIDER: [fn(&mut CertificateParams); 7] = [
    |params| params.name_constraints = None,
    |params| params.extended_key_usages = Vec::new(),
    |params| params.extended_key_usages.push(ExtendedKeyUsagePurpose::EmailProtection),
    |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
    |params| {
        let wide = GeneralSubtree::DnsName("qq.com".to_owned());
        params.name_constraints.as_mut().unwrap().permitted_subtrees.push(wide);
    },
    |params| _ = params.name_constraints.as_mut().unwrap().excluded_subtrees.pop(),
    |params| _ = params.name_constraints.as_mut().unwrap().excluded_subtrees.remove(1),
];

#[test]
fn another_authority_is_not_taken() {
    let now = Clock::real().now();
    let refused = |folder: &Path| Authority::load(folder).unwrap_err();
    let folder = authority(now);
    let path = folder.path();
    let (root, issuer) = (path.join("ca.pem"), path.join("private/issuer.pem"));
    let key = path.join("private/issuer.key");
    assert!(Authority::load(path).unwrap().issue(now).is_ok());

    // A root that did not sign the issuer, and an issuer of another key.
    let other = authority(now);
    let (good_root, good_issuer) = (read(&root), read(&issuer));
    write(&root, &read(&other.path().join("ca.pem")), 0o644);
    let apart = Authority::load(path).unwrap().issue(now);
    assert!(matches!(apart, Err(InterceptError::Apart { .. })));
    write(&root, &good_root, 0o644);
    write(&issuer, &read(&other.path().join("private/issuer.pem")), 0o644);
    assert!(matches!(refused(path), InterceptError::Strangers(_)));

    // One with limits, and those that could sign for more.
    let our_key = KeyPair::from_pem(&read(&key)).unwrap();
    let put = |path: &Path, params: &CertificateParams| {
        write(path, &params.self_signed(&our_key).unwrap().pem(), 0o644);
    };
    put(&issuer, &limits(0));
    assert!(Authority::load(path).is_ok());
    for (at, widen) in WIDER.iter().enumerate() {
        let mut params = limits(0);
        widen(&mut params);
        put(&issuer, &params);
        assert!(matches!(refused(path), InterceptError::Unlimited(_)), "{at}");
    }
    write(&issuer, &good_issuer, 0o644);
    let mut unlimited = limits(1);
    unlimited.name_constraints = None;
    put(&root, &unlimited);
    assert!(matches!(refused(path), InterceptError::Unlimited(_)));

    write(&root, "nothing", 0o644);
    assert!(matches!(refused(path), InterceptError::Bad { .. }));
    write(&key, &read(&key), 0o640);
    assert!(matches!(refused(path), InterceptError::Open { mode: 0o640, .. }));
    std::fs::remove_file(&key).unwrap();
    assert!(matches!(refused(path), InterceptError::Read { .. }));

    let old = authority(Timestamp::from_secs(0));
    let old = Authority::load(old.path()).unwrap();
    assert!(matches!(old.issue(now), Err(InterceptError::Ended { .. })));
}

#[test]
fn a_certificate_of_a_time_that_was_set_back_is_replaced_at_once() {
    let folder = authority(START);
    let authority = Authority::load(folder.path()).unwrap();
    let ahead = START + Duration::from_secs(1_000 * DAY);
    let leaf = authority.issue(ahead).unwrap();
    assert_eq!(leaf.renewal.due_in(ahead), Duration::from_secs(15 * DAY));
    assert_eq!(leaf.renewal.due_in(ahead + Duration::from_secs(15 * DAY)), Duration::ZERO);
    // A small step back is no matter: certificates begin an hour before.
    let small = ahead - Duration::from_secs(1_800);
    assert!(leaf.renewal.due_in(small) > Duration::from_secs(15 * DAY));
    assert_eq!(leaf.renewal.due_in(START), Duration::ZERO);
}

/// The simulated time, for TLS.
#[derive(Debug)]
struct SimulatedTime(Clock);

impl TimeProvider for SimulatedTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().as_secs()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// A connection of somebody who trusts the authority.
async fn connect(
    address: SocketAddr,
    folder: &Path,
    clock: &Clock,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let time = Arc::new(SimulatedTime(clock.clone()));
    let config = ClientConfig::builder_with_details(provider, time)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(folder))
        .with_no_client_auth();
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await
}

/// Asks on a connection, which stays open.
async fn ask(stream: &mut TlsStream<TcpStream>, path: &str) -> Answer {
    let request = format!("GET {path} HTTP/1.1\r\nhost: api.weixin.qq.com\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut received = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).await.unwrap();
        assert_ne!(read, 0, "the connection ended");
        received.extend_from_slice(&buffer[..read]);
        let Some(answer) = Answer::parse(&received) else { continue };
        let length: usize = answer.header("content-length").unwrap().parse().unwrap();
        if answer.body.len() >= length {
            return answer;
        }
    }
}

fn token_path(key: &str) -> String {
    format!("/cgi-bin/token?grant_type=client_credential&appid={APP}&secret={key}")
}

async fn world(folder: &Path) -> World {
    // Connections that say nothing for weeks are not what is tested here.
    let limits = server::http::Limits {
        header_read_timeout: Duration::from_secs(90 * DAY),
        ..Default::default()
    };
    let intercept = Some(Authority::load(folder).unwrap());
    // Nor are the refreshes of those weeks.
    World::with(Setup { limits, intercept, lazy: true, ..Setup::default() }).await
}

#[tokio::test(start_paused = true)]
async fn an_sdk_that_is_led_here_calls_wechat_with_its_client_key() {
    let folder = authority(START);
    let world = world(folder.path()).await;
    let address = world.intercept.unwrap();
    for name in NAMES {
        let mut stream = connect(address, folder.path(), &world.clock, name).await.unwrap();
        let token = ask(&mut stream, &token_path(&world.key)).await.json();
        let token = token["access_token"].as_str().unwrap().to_owned();
        assert!(token.starts_with("xt_"), "{token}");
        let info = format!("/cgi-bin/user/info?access_token={token}&openid={OPENID}");
        assert_eq!(ask(&mut stream, &info).await.json()["openid"], OPENID);
    }
    // Nothing else is there, whoever asks.
    let mut stream = connect(address, folder.path(), &world.clock, NAMES[0]).await.unwrap();
    for path in ["/healthz", "/readyz", "/v1/openapi.json", &format!("/v1/apps/{APP}/token")] {
        let answer = ask(&mut stream, path).await;
        let body = answer.json();
        assert!(body["errcode"].as_i64().is_some_and(|code| code != 0), "{path}: {answer:?}");
        assert!(body.get("type").is_none(), "{path}: {answer:?}");
    }
    // The API has stayed where it was.
    assert_eq!(world.get("/healthz").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn other_names_are_refused() {
    let folder = authority(START);
    let world = world(folder.path()).await;
    let address = world.intercept.unwrap();
    for name in ["example.com", "api.mch.weixin.qq.com", "open.weixin.qq.com", "127.0.0.1"] {
        let refused = connect(address, folder.path(), &world.clock, name).await.unwrap_err();
        // By the server: it shows no certificate that could be refused.
        assert!(refused.to_string().contains("received fatal alert"), "{name}: {refused}");
    }
    assert!(connect(address, folder.path(), &world.clock, "API.weixin.qq.com").await.is_ok());
}

fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test(start_paused = true)]
async fn certificates_are_renewed_and_connections_go_on() {
    let folder = authority(START);
    let world = world(folder.path()).await;
    let connect = || connect(world.intercept.unwrap(), folder.path(), &world.clock, NAMES[0]);
    let mut open = connect().await.unwrap();
    let first = shown(&open);
    pass(14 * DAY).await;
    assert_eq!(shown(&connect().await.unwrap()), first);
    pass(2 * DAY).await;
    let second = shown(&connect().await.unwrap());
    assert_ne!(second, first);
    let answer = ask(&mut open, &token_path(&world.key)).await;
    assert!(answer.json()["access_token"].is_string(), "{answer:?}");
    // Past the end of the first and of the second.
    for _ in 0..4 {
        pass(15 * DAY).await;
        assert_ne!(shown(&connect().await.unwrap()), second);
    }
    assert_eq!(ask(&mut open, &token_path(&world.key)).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn both_listeners_end_in_good_order() {
    let folder = authority(START);
    let world = world(folder.path()).await;
    let address = world.intercept.unwrap();
    let mut idle = connect(address, folder.path(), &world.clock, NAMES[0]).await.unwrap();
    ask(&mut idle, &token_path(&world.key)).await;
    world.shutdown.cancel();
    world.served().await;
    // The connection ends, and nobody listens any more.
    assert!(matches!(idle.read(&mut [0; 16]).await, Ok(0) | Err(_)));
    assert!(TcpStream::connect(address).await.is_err());
    assert!(TcpStream::connect(world.api).await.is_err());
}

#[tokio::test]
async fn init_writes_an_authority_once() {
    let folder = Folder::new();
    folder.xinfu(&["init"]).await.ok();
    let printed = folder.xinfu(&["intercept", "init", "--address", "10.1.2.3"]).await.ok();
    let path = |name: &str| folder.path(&format!("intercept/{name}"));
    let mode = |path: &Path| {
        let mode = std::fs::metadata(path).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777
    };
    assert_eq!(mode(&path("private")), 0o700);
    assert_eq!(mode(&path("private/issuer.key")), 0o600);
    let authority = || {
        let files = ["ca.pem", "private/issuer.pem", "private/issuer.key"];
        files.map(|name| std::fs::read_to_string(path(name)).ok())
    };
    let written = authority();
    let cert = written[0].clone().unwrap();
    assert!(read(&path("bundle.pem")).ends_with(&cert));
    let hosts = read(&path("hosts.txt"));
    assert_eq!(hosts.lines().count(), NAMES.len());
    for name in NAMES {
        assert!(hosts.contains(&format!("10.1.2.3 {name}\n")), "{hosts}");
    }
    let environment = read(&path("environment.txt"));
    for words in [
        "REQUESTS_CA_BUNDLE=",
        "SSL_CERT_FILE=",
        "NODE_EXTRA_CA_CERTS=",
        "keytool ",
        "curl.cainfo",
        "openssl.cafile",
        "CURL_CA_BUNDLE=",
    ] {
        assert!(environment.contains(words), "{environment}");
    }
    assert!(printed.out.contains(&hosts) && printed.out.contains(&environment), "{}", printed.out);
    assert!(!format!("{}{}", printed.out, printed.err).contains("PRIVATE KEY"));

    // One that cannot write everything leaves no authority in the way of the next try.
    let blocked = folder.path("blocked/hosts.txt");
    std::fs::create_dir_all(&blocked).unwrap();
    let elsewhere = ["intercept", "init", "--dir", "blocked"];
    folder.xinfu(&elsewhere).await.failed(1);
    std::fs::remove_dir(&blocked).unwrap();
    folder.xinfu(&elsewhere).await.ok();

    let again = folder.xinfu(&["intercept", "init"]).await.failed(1);
    assert!(again.err.contains("is there already; nothing was written"), "{}", again.err);
    assert_eq!(authority(), written);
    // A part of an authority counts too.
    std::fs::remove_file(path("ca.pem")).unwrap();
    std::fs::remove_file(path("private/issuer.pem")).unwrap();
    folder.xinfu(&["intercept", "init"]).await.failed(1);
    assert_eq!(authority()[2], written[2]);

    for nowhere in ["0.0.0.0", "::"] {
        let args = ["intercept", "init", "--dir", "other", "--address", nowhere];
        folder.xinfu(&args).await.failed(2);
    }
    assert!(!folder.path("other").exists());
    let ipv6 = ["intercept", "init", "--dir", "other", "--address", "fd00::1"];
    let printed = folder.xinfu(&ipv6).await.ok();
    assert!(printed.err.contains("`[fd00::1]:443`"), "{}", printed.err);
}

#[tokio::test]
async fn what_is_wrong_with_the_authority_is_told() {
    let mut folder = Folder::new();
    folder.xinfu(&["init"]).await.ok();
    folder.set("XINFU_LISTEN_API", "127.0.0.1:0");
    folder.set("XINFU_LISTEN_INTERCEPT", "127.0.0.1:0");
    folder.set("XINFU_UPSTREAM_DNS_SERVERS", "127.0.0.1:1");
    folder.set("XINFU_UPSTREAM_CALL_TIMEOUT", "3s");
    let printed = folder.xinfu(&["check-config"]).await.failed(2);
    assert!(printed.err.contains("`listen.intercept_ca` cannot be used"), "{}", printed.err);
    assert!(printed.err.contains("xinfu intercept init --dir"), "{}", printed.err);
    folder.xinfu(&["intercept", "init"]).await.ok();
    folder.xinfu(&["check-config"]).await.ok();
    let printed = folder.xinfu(&["doctor"]).await;
    assert!(printed.out.contains("intercept: the authority is good until 20"), "{}", printed.out);
    assert!(printed.out.contains("intercept: `127.0.0.1:0` is free"), "{}", printed.out);
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    folder.set("XINFU_LISTEN_INTERCEPT", &address);
    let printed = folder.xinfu(&["doctor"]).await;
    let words = format!("intercept: `{address}` is in use");
    assert!(printed.out.contains(&words), "{}", printed.out);

    let key = folder.path("intercept/private/issuer.key");
    write(&key, &read(&key), 0o644);
    let printed = folder.xinfu(&["check-config"]).await.failed(2);
    assert!(printed.err.contains("chmod 600"), "{}", printed.err);
    let printed = folder.xinfu(&["doctor"]).await.failed(1);
    assert!(printed.out.contains("intercept: `listen.intercept_ca`"), "{}", printed.out);
    folder.set("XINFU_UPSTREAM_RESOLVER", "system");
    let printed = folder.xinfu(&["check-config"]).await.failed(2);
    assert!(printed.err.contains("`XINFU_UPSTREAM_RESOLVER` is `system` while"), "{}", printed.err);
}

/// A name server that says of every name that it is at one address, and counts the questions.
async fn name_server(address: [u8; 4]) -> (SocketAddr, Arc<AtomicUsize>, JoinSet<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = socket.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&count);
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            asked.fetch_add(1, Ordering::SeqCst);
            let question = &buffer[12..length];
            let name = question.iter().position(|byte| *byte == 0).unwrap();
            let question = &question[..name + 5];
            let answers = u8::from(question[name + 2] == 1);
            let mut answer = buffer[..2].to_vec();
            answer.extend([0x81, 0x80, 0, 1, 0, answers, 0, 0, 0, 0]);
            answer.extend(question);
            if answers == 1 {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 0, 0, 4]);
                answer.extend(address);
            }
            socket.send_to(&answer, from).await.unwrap();
        }
    });
    (at, count, serving)
}

/// Fetches a token where the hosts file leads WeChat's name to this machine.
async fn refresh_where_hosts_lie(folder: &Folder) -> String {
    let hosts = folder.write("hosts", "127.0.0.1 localhost api.weixin.qq.com\n");
    let lie = format!("mount --bind '{}' /etc/hosts && exec \"$@\"", hosts.display());
    let id = Command::new("id").arg("-u").output().unwrap();
    let space: &[&str] =
        if id.stdout == b"0\n" { &["--mount"] } else { &["--map-root-user", "--mount"] };
    let mut command = tokio::process::Command::new("unshare");
    command.args(space).args(["sh", "-c", &lie, "sh", env!("CARGO_BIN_EXE_xinfu")]);
    command.args(["token", "refresh", "wx1"]).kill_on_drop(true);
    folder.at_home(&mut command);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap();
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn a_hosts_file_that_lies_is_not_asked() {
    let trap = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = trap.local_addr().unwrap().port();
    let trapped = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&trapped);
    let mut trapping = JoinSet::new();
    trapping.spawn(async move {
        while let Ok((stream, _)) = trap.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            drop(stream);
        }
    });
    let folder = || async {
        let wechat = format!("http://api.weixin.qq.com:{port}");
        let mut folder = Folder::ready_for(&wechat).await;
        folder.add_app("wx1", "0123456789abcdef0123456789abcdef", &[]).await.ok();
        folder.set("XINFU_UPSTREAM_CONNECT_TIMEOUT", "1s");
        folder.set("XINFU_UPSTREAM_CALL_TIMEOUT", "2s");
        folder
    };
    // The system believes it.
    refresh_where_hosts_lie(&folder().await).await;
    assert!(trapped.swap(0, Ordering::SeqCst) > 0);

    for (address, is_here) in [([192, 0, 2, 1], false), ([127, 0, 0, 1], true)] {
        let (server, asked, _serving) = name_server(address).await;
        let mut folder = folder().await;
        folder.xinfu(&["intercept", "init"]).await.ok();
        folder.set("XINFU_LISTEN_INTERCEPT", "127.0.0.1:0");
        folder.set("XINFU_UPSTREAM_DNS_SERVERS", &server.to_string());
        let said = refresh_where_hosts_lie(&folder).await;
        assert!(asked.load(Ordering::SeqCst) > 0, "{said}");
        assert_eq!(said.contains("which is this machine"), is_here, "{said}");
        assert_eq!(trapped.load(Ordering::SeqCst), 0, "{said}");
    }
}

#[tokio::test]
async fn a_server_says_where_it_stands_in_wechats_place() {
    let sim = SimProcess::start(&[("wx1", "0123456789abcdef0123456789abcdef")]).await;
    let mut folder = Folder::ready(&sim).await;
    folder.xinfu(&["intercept", "init"]).await.ok();
    folder.set("XINFU_LISTEN_INTERCEPT", "127.0.0.1:0");
    folder.set("XINFU_UPSTREAM_DNS_SERVERS", "127.0.0.1:1");
    folder.add_app("wx1", "0123456789abcdef0123456789abcdef", &[]).await.ok();
    let key = folder.add_key(&["sdk", "--everything"]).await;
    let mut server = folder.serve().await;
    let line = server.process.first_line("in WeChat's place").await;
    let address = line.rsplit_once("https://").unwrap().1.parse().unwrap();
    let path = folder.path("intercept");
    let mut stream = connect(address, &path, &Clock::real(), NAMES[0]).await.unwrap();
    let token = format!("/cgi-bin/token?grant_type=client_credential&appid=wx1&secret={key}");
    let answer = ask(&mut stream, &token).await.json();
    assert!(answer["access_token"].as_str().unwrap().starts_with("xt_"), "{answer}");
    assert_eq!(server.process.terminate().await, Some(0));
}
