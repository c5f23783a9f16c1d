//! `xinfu intercept`: what leads SDKs here that know only WeChat's own address.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use clock::Clock;

use super::{
    Console, Failure,
    init::write_new,
    open::{Place, folder_of},
};
use crate::intercept::{
    Authority, CERT_FILE, KEY_FILE, NewAuthority, Places, environment, hosts, system_bundle,
};

/// Leading SDKs here that know only WeChat's own address.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a local authority that can sign for WeChat's names only, and the lines that services
    /// need to be led here
    Init(InitArguments),
}

/// Where to write, and where to lead to.
#[derive(Debug, clap::Args)]
pub(crate) struct InitArguments {
    /// The folder to write to, made when it is not there [default: `intercept` beside the
    /// configuration file]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The address that services reach the listener `listen.intercept` at
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
}

/// Runs a command of the group.
pub(crate) fn run(
    command: &Command,
    place: &Place<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    match command {
        Command::Init(arguments) => init(arguments, place, console),
    }
}

fn init(
    arguments: &InitArguments,
    place: &Place<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    let config = place.environment.config_path(place.config);
    let folder = match &arguments.dir {
        Some(folder) => folder.clone(),
        None => folder_of(&config).join("intercept"),
    };
    let folder = std::path::absolute(&folder)
        .map_err(|err| Failure::new(format!("cannot use `{}`: {err}", folder.display())))?;
    let (cert, key) = (folder.join(CERT_FILE), folder.join(KEY_FILE));
    if let Some(there) = [&cert, &key].into_iter().find(|path| path.exists()) {
        return Err(Failure::new(format!(
            "`{}` is there already; nothing was written",
            there.display()
        ))
        .hint(
            "services trust that authority; for a new one name another folder with `--dir`, or \
             remove this one first",
        ));
    }
    make_private(&folder)
        .map_err(|err| Failure::new(format!("cannot make `{}`: {err}", folder.display())))?;

    let NewAuthority { cert_pem, key_pem } = Authority::make(Clock::real().now())
        .map_err(|err| Failure::new(format!("no authority was made: {err}")))?;
    write_new(&key, &key_pem, 0o600)?;
    if let Err(failure) = write_new(&cert, &cert_pem, 0o644) {
        // A key without its certificate is in the way of the next attempt.
        let _ = std::fs::remove_file(&key);
        return Err(failure);
    }
    let places = Places {
        cert: cert.clone(),
        bundle: folder.join("bundle.pem"),
        java: folder.join("java-cacerts"),
    };
    let system = system_bundle();
    let others = system.as_deref().unwrap_or_default();
    replace(&places.bundle, &format!("{}\n{cert_pem}", others.trim_end()))?;
    let hosts = hosts(arguments.address);
    replace(&folder.join("hosts.txt"), &hosts)?;
    let environment = environment(&places);
    replace(&folder.join("environment.txt"), &environment)?;

    console.say(&format!("wrote the authority `{}` and its key beside it", cert.display()))?;
    if system.is_none() {
        console.warn(
            "this system's authorities were not found: with `bundle.pem` a service trusts nobody \
             else",
        )?;
    }
    console
        .print(&format!("# The lines for the hosts file of a service:\n{hosts}\n{environment}"))?;
    console.hint(&format!(
        "let `listen.intercept` be `{}:443` and `listen.intercept_ca` be `{}`; services need \
         `ca.pem` or `bundle.pem`, never `ca.key`",
        arguments.address,
        folder.display()
    ))?;
    Ok(())
}

/// Makes a folder that is ours alone; one that is there stays as it is.
fn make_private(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// Writes a file that can be made again at any time.
fn replace(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text)
        .map_err(|err| Failure::new(format!("cannot write `{}`: {err}", path.display())))
}
