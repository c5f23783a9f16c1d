//! `xinfu intercept`: what leads SDKs here that know only WeChat's own address.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use clock::Clock;

use super::{
    Console, Failure,
    init::write_new,
    open::{Place, folder_of},
};
use crate::intercept::{
    Authority, ISSUER_FILE, KEY_FILE, NewAuthority, PRIVATE_FOLDER, Places, ROOT_FILE, environment,
    hosts, system_bundle,
};

/// The port that SDKs call.
const HTTPS: u16 = 443;

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
    let address = arguments.address;
    if address.is_unspecified() || address.is_multicast() {
        return Err(Failure::usage(format!("`{address}` is no address that a service can call"))
            .hint("`--address` is where services reach `listen.intercept`, as seen from them"));
    }
    let config = place.environment.config_path(place.config);
    let folder = match &arguments.dir {
        Some(folder) => folder.clone(),
        None => folder_of(&config).join("intercept"),
    };
    let folder = std::path::absolute(&folder)
        .map_err(|err| Failure::new(format!("cannot use `{}`: {err}", folder.display())))?;
    let private = folder.join(PRIVATE_FOLDER);
    let root = folder.join(ROOT_FILE);
    let (issuer, key) = (private.join(ISSUER_FILE), private.join(KEY_FILE));
    if let Some(there) = [&root, &issuer, &key].into_iter().find(|path| path.exists()) {
        return Err(Failure::new(format!(
            "`{}` is there already; nothing was written",
            there.display()
        ))
        .hint(
            "services trust that authority; for a new one name another folder with `--dir`, or \
             remove this one first",
        ));
    }
    std::fs::create_dir_all(&folder)
        .map_err(|err| Failure::new(format!("cannot make `{}`: {err}", folder.display())))?;
    make_private(&private)
        .map_err(|err| Failure::new(format!("cannot make `{}`: {err}", private.display())))?;

    let NewAuthority { root_pem, issuer_pem, key_pem } = Authority::make(Clock::real().now())
        .map_err(|err| Failure::new(format!("no authority was made: {err}")))?;
    let places = Places {
        cert: root.clone(),
        bundle: folder.join("bundle.pem"),
        java: folder.join("java-cacerts"),
    };
    let system = system_bundle();
    let others = system.as_deref().unwrap_or_default();
    // Those that may be written again come first: only an authority is in the way of another try.
    replace(&places.bundle, format!("{}\n{root_pem}", others.trim_end()).trim_start())?;
    let hosts = hosts(address);
    replace(&folder.join("hosts.txt"), &hosts)?;
    let environment = environment(&places);
    replace(&folder.join("environment.txt"), &environment)?;
    let files = [(&key, &key_pem, 0o600), (&issuer, &issuer_pem, 0o644), (&root, &root_pem, 0o644)];
    for (at, (path, text, mode)) in files.into_iter().enumerate() {
        if let Err(failure) = write_new(path, text, mode) {
            // Half an authority is in the way of the next attempt.
            for (written, _, _) in &files[..at] {
                let _ = std::fs::remove_file(written);
            }
            return Err(failure);
        }
    }

    console.say(&format!(
        "wrote the authority `{}`; what signs for it is in `{}`",
        root.display(),
        private.display()
    ))?;
    if system.is_none() {
        console.warn(
            "this system's authorities were not found: with `bundle.pem` a service trusts nobody \
             else",
        )?;
    }
    console
        .print(&format!("# The lines for the hosts file of a service:\n{hosts}\n{environment}"))?;
    console.hint(&format!(
        "let `listen.intercept` be `{}` and `listen.intercept_ca` be `{}`; the user that xinfu runs \
         as must be able to read `{PRIVATE_FOLDER}`, and nobody else",
        SocketAddr::new(address, HTTPS),
        folder.display()
    ))?;
    Ok(())
}

/// Makes a folder that is ours alone; one that is there stays as it is.
fn make_private(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
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
