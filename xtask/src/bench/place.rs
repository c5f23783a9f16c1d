//! The servers that are compared, and where they run.

use std::{
    env, fs,
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result, bail};

use super::{
    figures::{SUBJECTS, Subject},
    load::{Load, Wanted, get, store_value},
    process::{Cores, Daemon},
};
use crate::command::Call;

/// The appid that is used.
pub(super) const APP: &str = "wx0123456789abcdef";
/// The path of a compatible call.
const CALL: &str = "/cgi-bin/get_api_domain_ip";
/// What WeChat answers who asks for a token: as long as what it answers in truth.
pub(super) const TOKEN_ANSWER: &str = concat!(
    r#"{"access_token":"83_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789-_AbCdEfGhIjKlMnOpQrStUvWxYz012"#,
    r#"3456789-_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789-_AbCdEfGhIjKlMnOpQrS","expires_in":7200}"#
);
/// What the reference servers answer, and WeChat to any other call: as long as a token read's
/// answer.
const ANSWER: &str = concat!(
    r#"{"ip_list":["101.226.62.77","101.226.62.78","101.226.62.79","101.226.62.80","#,
    r#""101.226.62.81","101.226.62.82","101.226.62.83","101.226.62.84","101.226.62.85","#,
    r#""101.226.62.86","101.226.62.87","101.22.0.1"]}"#
);

/// A folder that is removed when it is dropped.
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// A new one.
    pub(crate) fn new() -> Result<Self> {
        Self::below(&env::temp_dir())
    }

    /// A new one in memory, where the system has a place for that: for what is not about disks.
    fn in_memory() -> Result<Self> {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { Self::below(memory) } else { Self::new() }
    }

    fn below(parent: &Path) -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("xinfu-{}-{count}", process::id()));
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file in it, and answers its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        fs::write(&path, text)?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} remains: {error}", self.0.display());
        }
    }
}

/// A folder with a configured xinfu.
pub(super) struct Xinfu {
    folder: Folder,
    binary: PathBuf,
    variables: Vec<(&'static str, String)>,
}

impl Xinfu {
    /// One that `xinfu init` has configured, for WeChat at this URL.
    pub(super) fn new(binary: &Path, wechat: &str) -> Result<Self> {
        Self::in_folder(Folder::new()?, binary, wechat)
    }

    /// The same with everything in memory, its store too.
    pub(super) fn in_memory(binary: &Path, wechat: &str) -> Result<Self> {
        Self::in_folder(Folder::in_memory()?, binary, wechat)
    }

    fn in_folder(folder: Folder, binary: &Path, wechat: &str) -> Result<Self> {
        let variables = vec![
            ("XINFU_LISTEN_API", "127.0.0.1:0".to_owned()),
            ("XINFU_LISTEN_ADMIN", "127.0.0.1:0".to_owned()),
            // Looked at on each call, and never reached.
            ("XINFU_LIMITS_KEY_CALLS_PER_MINUTE", u32::MAX.to_string()),
            ("XINFU_LIMITS_APP_CALLS_PER_MINUTE", u32::MAX.to_string()),
            ("XINFU_UPSTREAM_BASE_URLS", wechat.to_owned()),
        ];
        let xinfu = Self { folder, binary: binary.to_owned(), variables };
        xinfu.run(&["init"], "")?;
        Ok(xinfu)
    }

    /// Sets a variable.
    #[must_use]
    pub(super) fn with(mut self, name: &'static str, value: String) -> Self {
        self.variables.push((name, value));
        self
    }

    /// Its folder.
    pub(super) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Runs one of its commands and answers what it printed.
    pub(super) fn run(&self, args: &[&str], input: &str) -> Result<String> {
        let mut child = Command::new(&self.binary)
            .args(args)
            .current_dir(self.folder.path())
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", self.binary.display()))?;
        let mut stdin = child.stdin.take().context("the child has an input")?;
        stdin.write_all(input.as_bytes())?;
        drop(stdin);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("`xinfu {}`: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Registers the app.
    pub(super) fn add_app(&self) -> Result<()> {
        let secret = "0123456789abcdef0123456789abcdef";
        self.run(&["app", "add", APP, "--secret-file", "-"], secret).map(drop)
    }

    /// Makes a key that may do everything, and answers it.
    pub(super) fn add_key(&self) -> Result<String> {
        Ok(self.run(&["key", "add", "bench", "--everything"], "")?.trim().to_owned())
    }

    /// Starts the server on a core, and answers it with its host and port once it serves.
    pub(super) fn serve(&self, name: &'static str, core: usize) -> Result<(Daemon, String)> {
        self.start(name, Some(core), &[])
    }

    /// The same on any core, with more variables.
    pub(super) fn serve_with(
        &self,
        name: &'static str,
        more: &[(&str, &str)],
    ) -> Result<(Daemon, String)> {
        self.start(name, None, more)
    }

    fn start(
        &self,
        name: &'static str,
        core: Option<usize>,
        more: &[(&str, &str)],
    ) -> Result<(Daemon, String)> {
        let variables = self.variables.iter().map(|(name, value)| (*name, value.as_str()));
        let variables: Vec<(&str, &str)> = variables.chain(more.iter().copied()).collect();
        let line = [self.binary.as_os_str(), "serve".as_ref()];
        let mut daemon = Daemon::start(name, core, self.folder.path(), &line, &variables)?;
        let host = daemon.until("say that it serves", |daemon| {
            let printed = daemon.printed()?;
            let line = printed.lines().find(|line| line.contains(" serves "));
            let url = line
                .and_then(|line| line.split([' ', ',']).find_map(|w| w.strip_prefix("http://")));
            Ok(url.map(str::to_owned))
        })?;
        Ok((daemon, host))
    }
}

/// All servers of the comparison, with what is asked of them.
pub(super) struct Place {
    cores: Cores,
    wechat: Daemon,
    references: Daemon,
    redis: Daemon,
    plain: Daemon,
    over_tls: Daemon,
    loads: Loads,
    // Last, so that the servers have ended when their folders go.
    _folders: [Folder; 3],
}

struct Loads {
    reference: Load,
    redis: Load,
    token: Load,
    reference_proxy: Load,
    call: Load,
    reference_proxy_over_tls: Load,
    call_over_tls: Load,
}

impl Place {
    /// Starts everything.
    pub(super) fn prepare(root: &Path, binary: &Path, cores: Cores) -> Result<Self> {
        let folder = Folder::new()?;
        certificate(root, &folder)?;
        let ports = free_ports::<6>()?;
        let [plain_port, tls_port, reference, proxy, tls_proxy, redis_port] = ports;
        let wechat = format!("http://127.0.0.1:{plain_port}");
        let (wechat_plain, wechat_tls) = (wechat, format!("https://127.0.0.1:{tls_port}"));
        let wechat =
            nginx("wechat", Some(cores.client), &folder, &wechat_conf(plain_port, tls_port))?;

        let ca = folder.path().join("cert.pem").display().to_string();
        let plain = Xinfu::new(binary, &wechat_plain)?;
        let over_tls = Xinfu::new(binary, &wechat_tls)?.with("XINFU_UPSTREAM_CA_FILE", ca);
        for xinfu in [&plain, &over_tls] {
            xinfu.add_app()?;
        }
        let (key, tls_key) = (plain.add_key()?, over_tls.add_key()?);
        let (plain_daemon, plain_host) = plain.serve("xinfu", cores.server)?;
        let (tls_daemon, tls_host) = over_tls.serve("xinfu-over-tls", cores.server)?;

        let conf = references_conf(&key, [reference, proxy, tls_proxy], plain_port, tls_port);
        let references = nginx("references", Some(cores.server), &folder, &conf)?;
        let port = redis_port.to_string();
        let line = ["redis-server", "--port", &port, "--bind", "127.0.0.1", "--save", ""];
        let line = [&line[..], &["--appendonly", "no"]].concat();
        let mut redis = Daemon::start("redis", Some(cores.server), folder.path(), &line, &[])?;
        redis.until("take a value", |_| Ok(store_value(redis_port, ANSWER).ok()))?;

        let http = |host: &str, path: String, key: Option<&str>, wanted| Load::Http {
            host: host.to_owned(),
            path,
            key: key.map(str::to_owned),
            wanted,
        };
        let at = |port: u16| format!("127.0.0.1:{port}");
        let body = || Wanted::Body(ANSWER.to_owned());
        let token = TOKEN_ANSWER.split('"').nth(3).unwrap_or_default().to_owned();
        let path = format!("/v1/apps/{APP}/token");
        let called = |host: &str, key: &str| -> Result<Load> {
            let path = format!("{CALL}?access_token={}", pass(host, key)?);
            Ok(http(host, path, None, body()))
        };
        let token_of_wechat = format!("{CALL}?access_token={token}");
        let loads = Loads {
            reference: http(&at(reference), path.clone(), Some(&key), body()),
            redis: Load::Redis { port: redis_port, value: ANSWER.to_owned() },
            token: http(&plain_host, path, Some(&key), Wanted::Part(token)),
            reference_proxy: http(&at(proxy), token_of_wechat.clone(), None, body()),
            call: called(&plain_host, &key)?,
            reference_proxy_over_tls: http(&at(tls_proxy), token_of_wechat, None, body()),
            call_over_tls: called(&tls_host, &tls_key)?,
        };
        Ok(Self {
            cores,
            wechat,
            references,
            redis,
            plain: plain_daemon,
            over_tls: tls_daemon,
            loads,
            _folders: [folder, plain.folder, over_tls.folder],
        })
    }

    /// Puts the upstream on its core for a setting, and answers the core of the clients.
    pub(super) fn arrange(&self, apart: bool) -> Result<usize> {
        let core = if apart { self.cores.client } else { self.cores.server };
        self.wechat.pin(core)?;
        Ok(core)
    }

    /// All servers, the upstream too.
    pub(super) fn daemons(&self) -> [&Daemon; 5] {
        [&self.wechat, &self.references, &self.redis, &self.plain, &self.over_tls]
    }

    /// What is compared, in the order of [`SUBJECTS`].
    pub(super) fn subjects(&self) -> Vec<Subject<'_>> {
        let loads = &self.loads;
        let each = [
            (&self.references, &loads.reference),
            (&self.redis, &loads.redis),
            (&self.plain, &loads.token),
            (&self.references, &loads.reference_proxy),
            (&self.plain, &loads.call),
            (&self.references, &loads.reference_proxy_over_tls),
            (&self.over_tls, &loads.call_over_tls),
        ];
        let subjects = each.into_iter().zip(SUBJECTS);
        subjects.map(|((server, load), name)| Subject { name, server, load }).collect()
    }

    /// The bytes that nginx (references), Redis and xinfu have resident by now.
    pub(super) fn memory(&self) -> Result<[u64; 3]> {
        Ok([self.references.resident()?, self.redis.resident()?, self.plain.resident()?])
    }
}

/// Exchanges a key for a pass, as SDKs do.
fn pass(host: &str, key: &str) -> Result<String> {
    let path = format!("/cgi-bin/token?grant_type=client_credential&appid={APP}&secret={key}");
    let (_, body) = get(host, &path, None)?;
    let body: serde_json::Value = serde_json::from_str(&body)?;
    let pass = body["access_token"].as_str().with_context(|| format!("no pass: {body}"))?;
    Ok(pass.to_owned())
}

/// Makes a certificate for this machine that is its own authority.
fn certificate(root: &Path, folder: &Folder) -> Result<()> {
    let config = folder.write(
        "openssl.cnf",
        "[req]\nprompt = no\ndistinguished_name = name\nx509_extensions = extensions\n\
         [name]\nCN = xinfu bench\n[extensions]\nsubjectAltName = IP:127.0.0.1,DNS:localhost\n\
         basicConstraints = critical,CA:FALSE\n",
    )?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let args = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    let args =
        args.map(str::to_owned).into_iter().chain(["-nodes", "-days", "2"].map(str::to_owned));
    let files = [
        "-config".to_owned(),
        config.display().to_string(),
        "-keyout".to_owned(),
        path("key.pem"),
        "-out".to_owned(),
        path("cert.pem"),
    ];
    Call::new("openssl", root, args.chain(files)).stdout().map(drop)
}

/// Ports that are free now.
pub(super) fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut listeners = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

/// Starts an nginx with one worker, which inherits the core if one is given, and waits until it
/// listens.
pub(super) fn nginx(
    name: &'static str,
    core: Option<usize>,
    folder: &Folder,
    servers: &str,
) -> Result<Daemon> {
    let home = folder.path().join(name);
    fs::create_dir(&home)?;
    let text = format!(
        "daemon off;\nworker_processes 1;\nworker_rlimit_nofile 20000;\npid nginx.pid;\n\
         error_log error.log crit;\nevents {{ worker_connections 8192; }}\nhttp {{\n\
         access_log off;\nclient_body_temp_path body;\nproxy_temp_path proxy;\n\
         fastcgi_temp_path fastcgi;\nuwsgi_temp_path uwsgi;\nscgi_temp_path scgi;\n\
         keepalive_requests 1000000000;\nkeepalive_timeout 300s;\ndefault_type application/json;\n\
         {servers}}}\n"
    );
    let conf = folder.write(&format!("{name}.conf"), &text)?;
    let port = servers.split("127.0.0.1:").nth(1).and_then(|rest| rest.split([' ', ';']).next());
    let host = format!("127.0.0.1:{}", port.context("it listens nowhere")?);
    let line = ["nginx".as_ref(), "-p".as_ref(), home.as_os_str(), "-c".as_ref(), conf.as_os_str()];
    let line = [&line[..], &["-e".as_ref(), "error.log".as_ref()]].concat();
    let mut daemon = Daemon::start(name, core, folder.path(), &line, &[])?;
    daemon.until("answer", |_| Ok(get(&host, "/", None).ok()))?;
    Ok(daemon)
}

/// WeChat, in the clear and over TLS.
fn wechat_conf(plain: u16, tls: u16) -> String {
    format!(
        "server {{\nlisten 127.0.0.1:{plain} backlog=4096;\nlisten 127.0.0.1:{tls} ssl backlog=4096;\n\
         ssl_certificate cert.pem;\nssl_certificate_key key.pem;\n\
         ssl_session_cache shared:tls:4m;\n\
         location = /cgi-bin/stable_token {{ return 200 '{TOKEN_ANSWER}'; }}\n\
         location / {{ return 200 '{ANSWER}'; }}\n}}\n"
    )
}

/// The references: one answer behind a check of the key, and two proxies.
fn references_conf(key: &str, ports: [u16; 3], plain: u16, tls: u16) -> String {
    let [answers, proxies, tls_proxies] = ports;
    let upstream = |name: &str, port: u16| {
        format!(
            "upstream {name} {{ server 127.0.0.1:{port}; keepalive 512; \
             keepalive_requests 1000000000; }}\n"
        )
    };
    let proxy = "proxy_http_version 1.1;\nproxy_set_header Connection '';\n";
    format!(
        "{}{}server {{\nlisten 127.0.0.1:{answers} backlog=4096;\n\
         location / {{\nif ($http_authorization != 'Bearer {key}') {{ return 401; }}\n\
         return 200 '{ANSWER}';\n}}\n}}\n\
         server {{\nlisten 127.0.0.1:{proxies} backlog=4096;\n\
         location / {{\n{proxy}proxy_pass http://plain;\n}}\n}}\n\
         server {{\nlisten 127.0.0.1:{tls_proxies} backlog=4096;\n\
         location / {{\n{proxy}proxy_pass https://tls;\nproxy_ssl_session_reuse on;\n\
         proxy_ssl_verify on;\nproxy_ssl_name localhost;\n\
         proxy_ssl_trusted_certificate cert.pem;\n}}\n}}\n",
        upstream("plain", plain),
        upstream("tls", tls),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_as_long_as_the_real_ones() {
        assert_eq!(TOKEN_ANSWER.split('"').nth(3).map(str::len), Some(136));
        assert_eq!(ANSWER.len(), 202);
        assert!(serde_json::from_str::<serde_json::Value>(ANSWER).is_ok());
        assert!(serde_json::from_str::<serde_json::Value>(TOKEN_ANSWER).is_ok());
    }
}
