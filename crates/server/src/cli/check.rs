//! `xinfu check-config`: what was understood.

use toml::{Table, Value};

use super::{
    Console, Failure,
    console::{DIM, GREEN},
    open::{Place, warn_of_unknown},
};
use crate::config::{
    Loaded,
    env::{MASTER_KEYS, variable_of},
    file::{Origin, RawConfig, find},
};

/// Checks the configuration with the files that it names, and prints it with the origin of each
/// value.
pub(crate) fn run(place: &Place<'_>, console: &mut Console) -> Result<(), Failure> {
    let loaded = place.load()?;
    let Loaded { settings, typed, .. } = &loaded;
    settings.sealer()?;
    settings.tls()?;
    settings.authority()?;

    let table = Table::try_from(&typed.raw).map_err(|err| Failure::new(err.to_string()))?;
    for key in RawConfig::keys() {
        let name = key.name();
        let value = match find(&table, &name) {
            Some(value) => redacted(value).to_string(),
            None => "not set".to_owned(),
        };
        let origin = match typed.origin(&name) {
            Origin::Default => "default".to_owned(),
            Origin::File => "file".to_owned(),
            Origin::Environment => variable_of(&name),
        };
        console.print(&format!("{name} = {value}  {DIM}# {origin}{DIM:#}"))?;
    }
    for key in &settings.master_keys {
        let origin = match typed.origin("master_keys") {
            Origin::Environment => MASTER_KEYS,
            Origin::File | Origin::Default => "file",
        };
        let seals =
            if key.id == settings.seal_with { ", new secrets are sealed with it" } else { "" };
        console.print(&format!(
            "master key {} = a key in {}{seals}  {DIM}# {origin}{DIM:#}",
            key.id,
            key.file.display()
        ))?;
    }
    warn_of_unknown(&loaded, console)?;
    for (what, remedy) in settings.in_the_clear() {
        console.warn(&what)?;
        console.hint(remedy)?;
    }
    let place = typed
        .file()
        .map_or_else(|| "the environment".to_owned(), |file| format!("`{}`", file.display()));
    console.say(&format!("{GREEN}{place} is fine{GREEN:#}"))?;
    Ok(())
}

/// The value without the passwords of a URL.
fn redacted(value: &Value) -> Value {
    match value {
        Value::String(text) => {
            let Some((scheme, rest)) = text.split_once("://") else { return value.clone() };
            let (who, place) = match rest.rsplit_once('@') {
                Some((_, place)) => ("[redacted]@", place),
                None => ("", rest),
            };
            let shown = match place.split_once('?') {
                Some((place, query)) => format!("{place}?{}", without_passwords(query)),
                None => place.to_owned(),
            };
            format!("{scheme}://{who}{shown}").into()
        }
        Value::Array(values) => values.iter().map(redacted).collect::<Vec<_>>().into(),
        _ => value.clone(),
    }
}

/// A query without the values that are passwords.
fn without_passwords(query: &str) -> String {
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) if name.contains("password") => format!("{name}=[redacted]"),
        _ => pair.to_owned(),
    });
    pairs.collect::<Vec<_>>().join("&")
}
