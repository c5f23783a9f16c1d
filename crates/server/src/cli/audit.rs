//! `xinfu audit`: the audit log.

use serde_json::json;

use super::{Console, Failure, app::row, open::Place, status};

/// How much of it.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How many entries, the newest first
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints it.
pub(crate) async fn run(
    arguments: &Arguments,
    place: &Place<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    let open = place.open().await?;
    let limit = usize::try_from(arguments.limit).unwrap_or(usize::MAX);
    let entries = open.broker.audit(limit).await?;
    if arguments.json {
        let shown = entries.iter().map(|(number, entry)| {
            json!({
                "number": number,
                "at": entry.at.as_secs(),
                "actor": entry.actor.as_text(),
                "action": entry.action,
                "object": entry.object,
                "detail": entry.detail,
            })
        });
        let shown: Vec<_> = shown.collect();
        return Ok(console.print(&json!(shown).to_string())?);
    }
    if entries.is_empty() {
        return Ok(console.say("the audit log is empty")?);
    }
    let mut rows = vec![row(["TIME", "ACTOR", "ACTION", "OBJECT", "DETAIL"])];
    for (_, entry) in &entries {
        rows.push(row([
            &status::date(entry.at),
            &on_one_line(&entry.actor.as_text()),
            &on_one_line(&entry.action),
            &on_one_line(&entry.object),
            &on_one_line(&entry.detail),
        ]));
    }
    Ok(console.table(&rows)?)
}

/// What people named may hold characters that move a terminal's cursor.
fn on_one_line(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::on_one_line;

    #[test]
    fn a_name_cannot_move_the_cursor() {
        assert_eq!(on_one_line("a\u{1b}[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
    }
}
