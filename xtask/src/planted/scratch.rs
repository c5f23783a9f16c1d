//! The scratch copy of the repository in which bugs are planted.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use anyhow::{Context, Result, bail};

use super::patch::Patch;
use crate::{command::Call, servers::Servers, tidy::tracked};

/// A copy of all files that are or could be checked in, with its own target folder.
///
/// A file that has not changed since the last time keeps its time of change, so that cargo builds
/// only what a bug touches.
pub(super) struct Scratch {
    root: PathBuf,
    folder: PathBuf,
    servers: Servers,
}

impl Scratch {
    /// Makes the copy under `target/planted` the same as the repository at `root`, and starts the
    /// servers that tests need.
    pub(super) fn prepare(root: &Path) -> Result<Self> {
        let folder = root.join("target/planted");
        let scratch = Self { root: root.to_owned(), folder, servers: Servers::start(root)? };
        fs::create_dir_all(scratch.folder.join("logs"))?;

        let names: HashSet<PathBuf> = tracked(root)?.into_iter().map(PathBuf::from).collect();
        for name in &names {
            let fresh = fs::read(root.join(name))?;
            let copy = scratch.tree().join(name);
            if !fs::read(&copy).is_ok_and(|old| old == fresh) {
                write(&copy, &fresh)?;
            }
        }
        remove_others(&scratch.tree(), &scratch.tree(), &names)?;
        Ok(scratch)
    }

    /// Plants a bug.
    pub(super) fn apply(&self, patch: &Patch) -> Result<Planted> {
        let tree = self.tree();
        let touched = patch.touches.iter().map(|path| tree.join(path));
        let before = touched.map(|path| (path.clone(), fs::read(path).ok())).collect();
        // Inside a repository git would take the paths from its root, so it must not see ours.
        Call::git(&tree, ["apply".as_ref(), self.root.join(&patch.path).as_os_str()])
            .env("GIT_CEILING_DIRECTORIES", &self.folder)
            .stdout()?;
        let planted = Planted { before };
        if !planted.is_different() {
            bail!("{} changes nothing", patch.path);
        }
        Ok(planted)
    }

    /// Runs the tests of the patch's package that `filter` selects.
    pub(super) fn nextest(&self, patch: &Patch, filter: &str) -> Result<Output> {
        let target = self.folder.join("target");
        let mut args =
            ["nextest", "run", "--locked", "--color", "never"].map(str::to_owned).to_vec();
        args.extend(["--profile", "planted", "--status-level", "pass"].map(str::to_owned));
        args.extend(["--package", &patch.package, "-E", filter].map(str::to_owned));
        args.extend(["--target-dir".to_owned(), target.display().to_string()]);
        args.extend(patch.profile_args.iter().cloned());
        let call = self.servers.lent_to(Call::cargo(&self.tree(), args));
        // A counter-example found with a bug planted is of no use to the tests without it.
        call.env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true").output()
    }

    /// Where the output is kept of the last time that the patch was tried.
    pub(super) fn log(&self, patch: &Patch) -> PathBuf {
        self.folder.join("logs").join(format!("{}.log", patch.name))
    }

    /// Keeps what was printed when the patch was tried.
    pub(super) fn write_log(&self, patch: &Patch, text: &[u8]) -> Result<()> {
        write(&self.log(patch), text)
    }

    fn tree(&self) -> PathBuf {
        self.folder.join("tree")
    }
}

/// A bug in the scratch copy, with the files as they were before.
pub(super) struct Planted {
    before: Vec<(PathBuf, Option<Vec<u8>>)>,
}

impl Planted {
    /// Takes the bug out.
    pub(super) fn undo(self) -> Result<()> {
        for (path, text) in self.before {
            match text {
                Some(text) => write(&path, &text)?,
                None => fs::remove_file(&path)?,
            }
        }
        Ok(())
    }

    fn is_different(&self) -> bool {
        self.before.iter().any(|(path, text)| fs::read(path).ok() != *text)
    }
}

fn write(path: &Path, text: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// Removes the files below `folder` that are not among `names`, which are relative to `tree`.
fn remove_others(tree: &Path, folder: &Path, names: &HashSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(tree, &path, names)?;
        } else if !path.strip_prefix(tree).is_ok_and(|name| names.contains(name)) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_repository_lost_goes_and_the_rest_stays() {
        let tree = std::env::temp_dir().join(format!("xtask-scratch-{}", std::process::id()));
        write(&tree.join("a/kept.rs"), b"kept").unwrap();
        write(&tree.join("a/lost.rs"), b"lost").unwrap();
        remove_others(&tree, &tree, &HashSet::from([PathBuf::from("a/kept.rs")])).unwrap();
        assert!(tree.join("a/kept.rs").exists());
        assert!(!tree.join("a/lost.rs").exists());
        fs::remove_dir_all(&tree).unwrap();
    }

    #[test]
    fn undoing_gives_the_files_back() {
        let folder = std::env::temp_dir().join(format!("xtask-undo-{}", std::process::id()));
        let (old, new) = (folder.join("old.rs"), folder.join("new.rs"));
        write(&old, b"before").unwrap();
        let planted =
            Planted { before: vec![(old.clone(), Some(b"before".to_vec())), (new.clone(), None)] };
        assert!(!planted.is_different());
        write(&old, b"after").unwrap();
        write(&new, b"after").unwrap();
        assert!(planted.is_different());
        planted.undo().unwrap();
        assert_eq!(fs::read(&old).unwrap(), b"before");
        assert!(!new.exists());
        fs::remove_dir_all(&folder).unwrap();
    }
}
