//! Configuration: what is understood, and what is said about what is not.

use crate::process::Folder;

/// A configuration that stands in a folder with its master key.
async fn folder_with(lines: &str) -> Folder {
    let folder = Folder::new();
    folder.xinfu(&["init"]).await.ok();
    let text = format!("[[master_keys]]\nid = \"k1\"\nfile = \"master-k1.key\"\n\n{lines}\n");
    // Keys at the top have to stand before any table.
    let (top, rest): (Vec<_>, Vec<_>) = lines.lines().partition(|line| line.starts_with("top "));
    let top: String = top.iter().map(|line| format!("{}\n", &line[4..])).collect();
    let text = if top.is_empty() {
        text
    } else {
        format!(
            "{top}[[master_keys]]\nid = \"k1\"\nfile = \"master-k1.key\"\n{}\n",
            rest.join("\n")
        )
    };
    folder.write("xinfu.toml", &text);
    folder
}

/// What `check-config` says about a configuration that it refuses.
async fn refusal(lines: &str) -> String {
    let folder = folder_with(lines).await;
    let printed = folder.xinfu(&["check-config"]).await.failed(2);
    assert_eq!(printed.out, "");
    printed.err
}

#[tokio::test]
async fn what_is_wrong_is_named_by_file_key_and_what_is_allowed() {
    for (lines, words) in [
        ("[listen]\nweb = 3", vec!["`xinfu.toml` line 6", "`web`", "unknown field", "`api`"]),
        ("[listen]\napi = 7080", vec!["line 6", "`api`", "expected a string"]),
        ("[listen]\napi = \"localhost\"", vec!["`listen.api`", "`localhost`", "127.0.0.1:7080"]),
        ("[listen]\napi_tls_cert = \"c.pem\"", vec!["listen.api_tls_cert", "listen.api_tls_key"]),
        (
            "[listen]\napi_tls_cert = \"c.pem\"\napi_tls_key = \"k.pem\"",
            vec!["`listen.api_tls_cert` cannot be used", "cannot read", "c.pem"],
        ),
        ("[limits]\nbody = \"1 MB\"", vec!["line 6", "`body`", "u64"]),
        ("[limits]\nheader_bytes = 1", vec!["limits.header_bytes", "8192 to"]),
        ("[upstream]\ncall_timeout = \"8\"", vec!["upstream.call_timeout", "`8`", "`3s`"]),
        ("[upstream]\ncall_timeout = \"2m\"", vec!["upstream.call_timeout", "at most 30 s"]),
        (
            "[upstream]\nconnect_timeout = \"9s\"",
            vec!["upstream.connect_timeout", "`9s`", "longer than `upstream.call_timeout`, `8s`"],
        ),
        ("[upstream]\nbase_urls = []", vec!["upstream.base_urls", "no host"]),
        ("[upstream]\npages_url = \"open\"", vec!["upstream.pages_url", "https://host"]),
        ("[upstream]\npages_url = \"https://a b\"", vec!["upstream.pages_url", "no URL"]),
        ("[upstream]\nca_file = \"none.pem\"", vec!["upstream.ca_file", "none.pem"]),
        ("[upstream]\nproxy = \"ftp://x\"", vec!["upstream.proxy", "http://[user:password@]"]),
        ("[log]\nformat = \"xml\"", vec!["log.format", "`human` or `json`"]),
        ("[log]\nlevel = \"loud=really\"", vec!["log.level", "`error`, `warn`"]),
        ("[log]\nlevel = \"inf\"", vec!["log.level", "`inf`", "`error`, `warn`"]),
        ("[limits]\ndrain = \"11m\"", vec!["limits.drain", "at most 10 min"]),
        ("[limits]\nwrite_timeout = \"0s\"", vec!["limits.write_timeout", "more than 0"]),
        ("top store = \"sqlite://xinfu.db\"", vec!["`store`", "hint:", "`sqlite:xinfu.db`"]),
        ("top store = \"sqlite://me:pw@/x.db\"", vec!["`store`", "`sqlite:/abs/path`"]),
        (
            "[listen]\napi_tls_cert = \"xinfu.toml\"\napi_tls_key = \"k.pem\"",
            vec!["`listen.api_tls_key` cannot be used", "k.pem"],
        ),
        ("[upstream]\nproxy_file = \"none\"", vec!["`upstream.proxy_file`", "`none`"]),
        ("top store = \"postgres://db\"", vec!["`store`", "names no database"]),
        ("top store = \"mysql://db/x\"", vec!["`store`", "hint:", "`postgres://"]),
        (
            "top store = \"postgres://db/x?sslrootcert=ca.pem\"",
            vec!["`sslrootcert`", "hint: `store_ca_file`"],
        ),
        ("top store = \"sqlite:a.db\"\ntop store_file = \"a\"", vec!["`store`", "`store_file`"]),
        ("top store_file = \"none\"", vec!["`store_file`", "`none`"]),
        ("top store_ca_file = \"ca.pem\"", vec!["`store_ca_file`", "PostgreSQL"]),
        ("top shared = \"redis://\"", vec!["`shared`"]),
        ("top shared = \"redis+odd://h\"", vec!["`shared`", "redis+sentinel://"]),
        ("top shared = \"sqlite:other.db\"", vec!["`shared`", "hint:", "leave it out"]),
        ("top shared_ca_file = \"xinfu.toml\"", vec!["`shared_ca_file`", "`shared`"]),
        ("top seal_with = \"k9\"", vec!["`seal_with`", "`k9`"]),
        ("this is no TOML", vec!["`xinfu.toml` line 5"]),
    ] {
        let err = refusal(lines).await;
        for word in words {
            assert!(err.contains(word), "{lines}: no {word} in: {err}");
        }
    }
}

#[tokio::test]
async fn a_password_in_the_file_is_never_quoted() {
    let err = refusal("[upstream]\nproxy = \"http://me:pass5555word@proxy:1").await;
    assert!(!err.contains("pass5555word"), "{err}");
    for lines in [
        "[limits]\nbody = \"pass5555word\"",
        "[upstream]\nbase_urls = \"http://me:pass5555word@host\"",
        "[upstream]\nbase_urls = [\n\"http://me:pass5555word=@host\", 3]",
        "[upstream]\nproxy = http://me:pass5555word@host",
        "upstream = \"pass5555word\"",
        "[log]\nlevel = 5555",
        "top store = \"sqlite://me:pass5555word@host/x.db\"",
        "top store = \"postgres://me:pass5555word@host:port/x\"",
        "top store = \"postgres://me:pass5555word@host/x?pass5555word=1\"",
        "top store = \"postgres://me:pa?ss5555word@host/x\"",
        "top store = \"postgres://me:pa@ss/5555word@host/x\"",
        "top shared = \"redis://me:pass5555word@host:port/x\"",
        "top shared = \"redis://me:pass5555word@host/?pass5555word=1\"",
        "top shared = \"postgres://me:pass5555word@host/x?sslmode=pass5555word\"",
    ] {
        let err = refusal(lines).await;
        assert!(!err.contains("5555"), "{err}");
    }
    let lines = "top store = \"postgres://me:pass5555word@db/x?password=pass5555word\"\n\
         top shared = \"redis+sentinel://:pass5555word@a,b/main?sentinel_password=pass5555word\"\n\
         [upstream]\nproxy = \"http://me:pass5555word@proxy:3128\"";
    let folder = folder_with(lines).await;
    let printed = folder.xinfu(&["check-config"]).await.ok();
    for shown in
        ["http://[redacted]@proxy:3128", "postgres://[redacted]@db/x", "[redacted]@a,b/main"]
    {
        assert!(printed.out.contains(shown), "{}", printed.out);
    }
    assert!(!format!("{}{}", printed.out, printed.err).contains("pass5555word"));
}

#[tokio::test]
async fn a_variable_goes_before_the_file() {
    let mut folder = folder_with("[listen]\napi = \"127.0.0.1:1\"").await;
    folder.set("XINFU_LISTEN_API", "127.0.0.1:2");
    folder.set("XINFU_UPSTREAM_BASE_URLS", "http://a.test, http://b.test");
    folder.set("XINFU_LIMITS_BATCH", "7");
    folder.set("XINFU_LISTN_API", "x");
    let printed = folder.xinfu(&["check-config"]).await.ok();
    for line in [
        "listen.api = \"127.0.0.1:2\"  # XINFU_LISTEN_API",
        "upstream.base_urls = [\"http://a.test\", \"http://b.test\"]  # XINFU_UPSTREAM_BASE_URLS",
        "limits.batch = 7  # XINFU_LIMITS_BATCH",
        "log.level = \"info\"  # default",
    ] {
        assert!(printed.out.contains(line), "{line}: {}", printed.out);
    }
    assert!(printed.err.contains("`XINFU_LISTN_API` is set"), "{}", printed.err);

    folder.set("XINFU_LIMITS_BATCH", "many");
    let printed = folder.xinfu(&["check-config"]).await.failed(2);
    assert!(printed.err.contains("`XINFU_LIMITS_BATCH` is not a whole number"));
}

#[tokio::test]
async fn the_variable_for_logs_is_checked_by_every_command() {
    let mut folder = Folder::new();
    folder.xinfu(&["init"]).await.ok();
    folder.set("XINFU_LOG", "inf");
    for args in [&["check-config"][..], &["app", "list"], &["serve"], &["doctor"], &["sim"]] {
        let printed = folder.xinfu(args).await.failed(2);
        assert!(printed.err.contains("`XINFU_LOG` is `inf`"), "{}", printed.err);
    }
    folder.set("XINFU_LOG", "warn,broker=debug");
    folder.xinfu(&["check-config"]).await.ok();
}

#[tokio::test]
async fn a_store_may_be_an_absolute_path_also_as_a_url() {
    let mut folder = folder_with("").await;
    for (start, name) in [("sqlite:", "a.db"), ("sqlite://", "b.db")] {
        folder.set("XINFU_STORE", &format!("{start}{}", folder.path(name).display()));
        folder.xinfu(&["app", "list"]).await.ok();
        assert!(folder.path(name).exists());
    }
}

#[tokio::test]
async fn where_the_store_is_may_lie_in_a_file() {
    let folder = folder_with("top store_file = \"place\"").await;
    folder.write("place", "sqlite:other.db\n");
    folder.xinfu(&["app", "list"]).await.ok();
    assert!(folder.path("other.db").exists() && !folder.path("xinfu.db").exists());
}

#[tokio::test]
async fn what_is_shared_may_name_the_store_or_another_database() {
    for (store, shared) in [
        ("sqlite:a.db", "sqlite:./a.db"),
        ("postgres://me@db/x", "postgresql://me@db:5432/x?sslmode=verify-full"),
        ("postgres://me@db/x", "postgres://me@other/y"),
        ("sqlite:a.db", "postgres://me@db/x"),
    ] {
        let lines = format!("top store = \"{store}\"\ntop shared = \"{shared}\"");
        folder_with(&lines).await.xinfu(&["check-config"]).await.ok();
    }
    let folder = folder_with("top store_file = \"place\"\ntop shared = \"sqlite:a.db\"").await;
    folder.write("place", "sqlite:a.db");
    folder.xinfu(&["app", "list"]).await.ok();
}

#[tokio::test]
async fn a_store_that_can_be_listened_to_is_warned_of() {
    let open = "top store = \"postgres://me@db.example.com/x?sslmode=disable\"\n\
                top shared = \"redis://redis.example.com\"";
    let closed = "top store = \"postgres://me@db.example.com/x\"\n\
                  top shared = \"rediss://redis.example.com\"";
    for (lines, warned) in [(open, true), (closed, false)] {
        let printed = folder_with(lines).await.xinfu(&["check-config"]).await.ok();
        for words in ["need not speak TLS", "hint: set `sslmode=require`", "hint: use `rediss`"] {
            assert_eq!(printed.err.contains(words), warned, "{words}: {}", printed.err);
        }
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_configuration_that_is_there_and_cannot_be_read_needs_no_new_one() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("folder")).unwrap();
    let printed = folder.xinfu(&["check-config", "--config", "folder"]).await.failed(2);
    assert!(!printed.err.contains("xinfu init"), "{}", printed.err);
    let printed = folder.xinfu(&["check-config", "--config", "none"]).await.failed(2);
    assert!(printed.err.contains("hint: `xinfu init`"), "{}", printed.err);
}

#[tokio::test]
async fn a_secret_may_lie_in_a_file() {
    let folder = folder_with("[upstream]\nproxy_file = \"proxy-url\"").await;
    folder.xinfu(&["check-config"]).await.failed(2);
    folder.write("proxy-url", "http://me:pass5555word@proxy:3128\n");
    let printed = folder.xinfu(&["check-config"]).await.ok();
    assert!(!printed.out.contains("pass5555word"));
    folder.write("proxy-url", &"x".repeat(5_000));
    let printed = folder.xinfu(&["check-config"]).await.failed(2);
    assert!(printed.err.contains("more than 4096 bytes"), "{}", printed.err);
    folder.write("proxy-url", "me:pass5555word\n");
    let printed = folder.xinfu(&["check-config"]).await.failed(2);
    assert!(printed.err.contains("upstream.proxy_file"), "{}", printed.err);
    assert!(!printed.err.contains("pass5555word"));
}

#[tokio::test]
async fn the_environment_alone_can_be_enough() {
    let mut folder = Folder::new();
    let printed = folder.xinfu(&["check-config"]).await.failed(2);
    assert!(printed.err.contains("hint: `xinfu init`"), "{}", printed.err);
    let key = folder.write("key.hex", &"0f".repeat(32));
    close(&key);
    folder.set("XINFU_MASTER_KEYS", "k1=key.hex");
    let printed = folder.xinfu(&["check-config"]).await.ok();
    assert!(printed.out.contains("master key k1 = a key in key.hex"), "{}", printed.out);
}

#[tokio::test]
async fn relative_paths_begin_at_the_file() {
    let folder = Folder::new();
    folder.xinfu(&["init", "deep/er"]).await.ok();
    let printed = folder.xinfu(&["app", "list", "--config", "deep/er/xinfu.toml"]).await.ok();
    assert!(printed.err.contains("no app is registered"));
    assert!(folder.path("deep/er/xinfu.db").exists());
    assert!(!folder.path("xinfu.db").exists());
}

#[tokio::test]
async fn init_writes_where_the_other_commands_read() {
    let mut folder = Folder::new();
    let printed = folder.xinfu(&["init", "--config", "deep/mine.toml"]).await.ok();
    assert!(printed.err.contains("`xinfu serve --config deep/mine.toml`"), "{}", printed.err);
    folder.xinfu(&["check-config", "--config", "deep/mine.toml"]).await.ok();
    assert!(folder.path("deep/master-k1.key").exists() && !folder.path("xinfu.toml").exists());
    folder.xinfu(&["init", "folder", "--config", "x.toml"]).await.failed(2);
    folder.set("XINFU_CONFIG", "other/named.toml");
    let printed = folder.xinfu(&["init"]).await.ok();
    assert!(printed.err.contains("`xinfu serve`"), "{}", printed.err);
    folder.xinfu(&["check-config"]).await.ok();
    // What is said at the command line goes first.
    folder.xinfu(&["init", "third"]).await.ok();
    assert!(folder.path("third/xinfu.toml").exists());
}

#[cfg(unix)]
#[tokio::test]
async fn a_key_without_its_configuration_does_not_stay() {
    let folder = Folder::new();
    // It seems not to be there, and cannot be made.
    std::os::unix::fs::symlink("nowhere/x", folder.path("xinfu.toml")).unwrap();
    let printed = folder.xinfu(&["init"]).await.failed(1);
    assert!(printed.err.contains("cannot write `xinfu.toml`"), "{}", printed.err);
    assert!(!folder.path("master-k1.key").exists());
}

#[tokio::test]
async fn a_mistyped_path_of_a_master_key_is_taken_for_that() {
    let mut folder = Folder::new();
    folder.set("XINFU_MASTER_KEYS", "k1=mater.key");
    let printed = folder.xinfu(&["check-config"]).await.failed(2);
    assert!(printed.err.contains("hint: look at the path first"), "{}", printed.err);
}

#[cfg(unix)]
#[tokio::test]
async fn secrets_that_everybody_can_read_are_told() {
    use std::os::unix::fs::PermissionsExt;
    let mut folder = folder_with("[upstream]\nproxy_file = \"proxy-url\"").await;
    let file = folder.write("proxy-url", "http://me:pass5555word@proxy:3128\n");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let printed = folder.xinfu(&["check-config"]).await.ok();
    assert!(printed.err.contains("`proxy-url` holds a secret, and every user"), "{}", printed.err);
    let add = ["app", "add", "wx1", "--secret-file", "proxy-url"];
    let printed = folder.xinfu(&add).await.ok();
    assert!(printed.err.contains("every user here can read it"), "{}", printed.err);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let printed = folder.xinfu(&["check-config"]).await.ok();
    assert!(!printed.err.contains("warning"), "{}", printed.err);
    // What goes without TLS is told here as the server tells it.
    folder.set("XINFU_LISTEN_API", "0.0.0.0:7080");
    let printed = folder.xinfu(&["check-config"]).await.ok();
    assert!(printed.err.contains("`0.0.0.0:7080` without TLS"), "{}", printed.err);
}

#[tokio::test]
async fn init_never_overwrites() {
    let folder = Folder::new();
    folder.xinfu(&["init"]).await.ok();
    let (config, key) = (folder.path("xinfu.toml"), folder.path("master-k1.key"));
    let before = (std::fs::read(&config).unwrap(), std::fs::read(&key).unwrap());
    folder.xinfu(&["init"]).await.failed(1);
    assert_eq!((std::fs::read(&config).unwrap(), std::fs::read(&key).unwrap()), before);
    std::fs::remove_file(&config).unwrap();
    folder.xinfu(&["init"]).await.failed(1);
    assert_eq!(std::fs::read(&key).unwrap(), before.1);
    assert!(!config.exists());
}

#[cfg(unix)]
#[tokio::test]
async fn a_master_key_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    folder.xinfu(&["init"]).await.ok();
    let key = folder.path("master-k1.key");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    for mode in [0o640, 0o604, 0o660] {
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
        for command in ["serve", "check-config"] {
            let printed = folder.xinfu(&[command]).await.failed(2);
            assert!(printed.err.contains("open to other users"), "{}", printed.err);
            assert!(printed.err.contains("hint: `chmod 600"), "{}", printed.err);
        }
        let printed = folder.xinfu(&["doctor"]).await.failed(1);
        assert!(printed.out.contains("open to other users"), "{}", printed.out);
    }
}

/// Makes a file ours alone.
fn close(path: &std::path::Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    #[cfg(not(unix))]
    let _ = path;
}
