//! Rules for Rust files and for the words in any file.

use super::{Finding, TextFile};

/// The most lines that a file may have, its inline test module left out.
const FILE_LINES: usize = 800;
/// The most traits in the workspace, and the most macros by example.
const TRAITS: usize = 10;
const MACROS: usize = 5;

/// What is never checked in, in code.
const UNFINISHED: [(&str, &str); 4] = [
    ("#[ignore", "a test that does not run promises nothing: mend it or remove it"),
    ("todo!", "unfinished"),
    ("unimplemented!", "unfinished"),
    ("dbg!", "left over from looking for something"),
];

/// Folders at the root of a file system that say where somebody works, and nothing to a reader of
/// this repository. (`/var`, `/etc`, `/proc` are the same on every machine.)
const PLACES: [&str; 8] = ["home", "root", "tmp", "work", "mnt", "media", "Users", "private"];

/// Where a text may point to: WeChat, and names that lead nowhere. Whatever else there is to get, a
/// reader's own tools know where.
const HOSTS: [&str; 11] = [
    "weixin.qq.com",
    "qlogo.cn",
    "mmbizurl.cn",
    "t.cn",
    "example.com",
    "example",
    "test",
    "internal",
    "localhost",
    "elsewhere",
    "a.cn",
];

/// Applies all rules of this file.
pub(super) fn check(files: &[TextFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut traits = Vec::new();
    let mut macros = Vec::new();
    for file in files {
        if !is_foreign_text(&file.path) {
            findings.extend(words(file));
        }
        if !file.path.ends_with(".rs") {
            continue;
        }
        let code = code_of(&file.text);
        findings.extend(size(file, &code));
        findings.extend(unfinished(file, &code));
        findings.extend(commented_out(file, &code));
        findings.extend(test_binaries(file));
        traits.extend(declarations(file, &code, "trait "));
        macros.extend(declarations(file, &code, "macro_rules! "));
    }
    findings.extend(too_many("traits", TRAITS, &traits));
    findings.extend(too_many("`macro_rules!`", MACROS, &macros));
    findings
}

/// Files whose words are not ours.
fn is_foreign_text(path: &str) -> bool {
    path.ends_with("Cargo.lock") || path.starts_with("LICENSE")
}

fn words(file: &TextFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    let depth = file.path.matches('/').count();
    for (number, line) in numbered(&file.text) {
        let mut find = |message: String| findings.push(Finding::new(&file.path, number, message));
        if let Some(place) = place_of_a_machine(line) {
            find(format!("`/{place}/` is a place on one machine"));
        }
        if leads_outside(line, depth) {
            find("this path leads out of the repository".to_owned());
        }
        if let Some(host) = hosts(line).find(|host| !is_known(host)) {
            find(format!("`{host}` is not a host to point to"));
        }
        let low = line.to_lowercase();
        let numbered_issue = low.match_indices("issue #").any(|(at, found)| {
            low[at + found.len()..].starts_with(|next: char| next.is_ascii_digit())
        });
        if numbered_issue {
            find("say it here instead of by a number".to_owned());
        }
    }
    findings
}

/// The first segment of an absolute path that exists on one machine only.
fn place_of_a_machine(line: &str) -> Option<&'static str> {
    PLACES.into_iter().find(|place| {
        line.match_indices(place).any(|(at, _)| {
            let before = line[..at].strip_suffix('/').map(|before| before.chars().next_back());
            let is_absolute =
                before.is_some_and(|before| before.is_none_or(|char| !is_part_of_a_path(char)));
            is_absolute && line[at + place.len()..].starts_with('/')
        })
    })
}

/// Whether a relative path goes up further than to the root, from a file in a folder so deep.
fn leads_outside(line: &str, depth: usize) -> bool {
    line.match_indices("../").any(|(at, _)| {
        let starts = !line[..at].chars().next_back().is_some_and(is_part_of_a_path);
        let ups = line[at..].split("../").take_while(|part| part.is_empty()).count();
        starts && ups > depth
    })
}

fn is_part_of_a_path(char: char) -> bool {
    char.is_alphanumeric() || "_-./".contains(char)
}

/// The hosts of the web addresses in a line that have a name with a dot in it.
fn hosts(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("://").filter_map(|(at, sign)| {
        let is_web = line[..at].ends_with("http") || line[..at].ends_with("https");
        let rest = &line[at + sign.len()..];
        let end = rest.find(|char: char| !(char.is_ascii_alphanumeric() || ".-".contains(char)));
        let host = rest[..end.unwrap_or(rest.len())].trim_end_matches('.');
        let is_name = host.contains('.') && host.contains(|char: char| char.is_ascii_alphabetic());
        (is_web && is_name).then_some(host)
    })
}

fn is_known(host: &str) -> bool {
    HOSTS.iter().any(|known| {
        host.strip_suffix(known).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

fn size(file: &TextFile, code: &str) -> Option<Finding> {
    let lines = production_lines(code);
    (lines > FILE_LINES).then(|| {
        let message = format!("{lines} lines without inline tests, the limit is {FILE_LINES}");
        Finding::new(&file.path, 1, message)
    })
}

/// The number of lines outside inline test modules. Leans on the code being formatted: a module at
/// the left edge ends at the next brace at the left edge.
fn production_lines(code: &str) -> usize {
    let mut count = 0;
    let mut lines = code.lines().peekable();
    while let Some(line) = lines.next() {
        let is_test_module = line == "#[cfg(test)]"
            && lines.peek().is_some_and(|next| next.starts_with("mod ") && next.ends_with('{'));
        if is_test_module {
            lines.find(|line| *line == "}");
        } else {
            count += 1;
        }
    }
    count
}

fn unfinished(file: &TextFile, code: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in numbered(code) {
        for (word, message) in UNFINISHED {
            if line.contains(word) {
                findings.push(Finding::new(&file.path, number, format!("`{word}`: {message}")));
            }
        }
    }
    findings
}

/// Finds comments that are code beyond doubt: a keyword at the start and a semicolon or brace at
/// the end. Anything less certain is left to review.
fn commented_out(file: &TextFile, code: &str) -> Vec<Finding> {
    const STARTS: [&str; 7] = ["let ", "use ", "pub ", "fn ", "return ", "assert", "self."];
    let mut findings = Vec::new();
    for ((number, line), code) in numbered(&file.text).zip(code.lines()) {
        let is_comment = code.trim().is_empty();
        let Some(comment) = line.trim().strip_prefix("// ").filter(|_| is_comment) else {
            continue;
        };
        let comment = comment.trim();
        let is_code = STARTS.iter().any(|start| comment.starts_with(start))
            && (comment.ends_with(';') || comment.ends_with('{'))
            && comment.contains(['=', '(', ':']);
        if is_code || ["}", "};", "});"].contains(&comment) {
            findings.push(Finding::new(&file.path, number, "commented-out code"));
        }
    }
    findings
}

/// A crate has one integration binary, `tests/it`: each further one is linked anew.
fn test_binaries(file: &TextFile) -> Option<Finding> {
    let (_, below) = file.path.split_once("/tests/")?;
    let is_binary = file.path.starts_with("crates/")
        && (!below.contains('/') || below.ends_with("/main.rs") && below != "it/main.rs");
    is_binary.then(|| {
        Finding::new(&file.path, 1, "make it a module of the one integration binary, `tests/it`")
    })
}

fn declarations<'a>(file: &'a TextFile, code: &str, keyword: &str) -> Vec<(&'a str, usize)> {
    let declares = |line: &str| {
        let line = line.trim_start();
        let line = match line.strip_prefix("pub") {
            Some(rest) if rest.starts_with('(') => {
                rest.split_once(") ").map_or("", |(_, rest)| rest)
            }
            Some(rest) => rest.trim_start(),
            None => line,
        };
        line.strip_prefix("unsafe ").unwrap_or(line).starts_with(keyword)
    };
    let found = numbered(code).filter(|(_, line)| declares(line));
    found.map(|(number, _)| (file.path.as_str(), number)).collect()
}

fn too_many(what: &str, limit: usize, found: &[(&str, usize)]) -> Vec<Finding> {
    let total = found.len();
    let beyond = found.iter().skip(limit);
    let message = format!("the workspace has {total} {what}, the limit is {limit}");
    beyond.map(|(path, line)| Finding::new(path, *line, message.as_str())).collect()
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

/// The text with comments and the insides of strings blanked out, line by line the same.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let before = code.chars().next_back();
        let is_word = before.is_some_and(|before| before.is_alphanumeric() || before == '_');
        let blank = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if first == '"' {
            string(rest)
        } else if !is_word && let Some(length) = raw_string(rest) {
            length
        } else if let Some(length) = character(rest) {
            length
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        code.extend(rest[..blank].chars().filter(|char| *char == '\n'));
        rest = &rest[blank..];
    }
    code
}

/// The length of the block comment, with those inside it, that `text` starts with.
fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of the string literal that `text` starts with.
fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, char) in text.char_indices().skip(1) {
        match char {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of the raw string literal that `text` starts with, if it does.
fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(text.len() - body.len() + length)
}

/// The length of the character literal that `text` starts with, if it is not a lifetime.
fn character(text: &str) -> Option<usize> {
    let body = text.strip_prefix('\'')?;
    let first = body.chars().next()?;
    if first == '\\' {
        let escaped = body[1..].chars().next()?;
        let from = 1 + escaped.len_utf8();
        return body[from..].find('\'').map(|at| 1 + from + at + 1);
    }
    body[first.len_utf8()..].starts_with('\'').then(|| first.len_utf8() + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rust(text: &str) -> TextFile {
        TextFile { path: "crates/a/src/lib.rs".to_owned(), text: text.to_owned() }
    }

    fn lines_of(findings: &[Finding]) -> Vec<usize> {
        findings.iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn strings_and_comments_are_not_code() {
        let text = "a(\"todo!()\"); // todo!()\n/* dbg!( /* */ \n*/ b('\"', '\\'', r#\"\"dbg!\"#);";
        assert_eq!(code_of(text), "a(); \n\n b(, , );");
        assert_eq!(code_of("fn f<'a>(x: &'a str) {}"), "fn f<'a>(x: &'a str) {}");
        assert_eq!(code_of("let for_each = r;"), "let for_each = r;");
    }

    #[test]
    fn unfinished_code_is_found_in_code_only() {
        let file = rust("/// No `todo!` here.\nfn a() { todo!() }\n    #[ignore = \"slow\"]\n");
        assert_eq!(lines_of(&unfinished(&file, &code_of(&file.text))), [2, 3]);
    }

    #[test]
    fn inline_tests_do_not_count_as_production_lines() {
        let text = "fn a() {}\n\n#[cfg(test)]\nmod tests {\n    fn b() {\n    }\n}\nfn c() {}\n";
        assert_eq!(production_lines(text), 3);
        assert_eq!(production_lines("#[cfg(test)]\nmod tests;\n"), 2);
        let long = rust(&"fn a() {}\n".repeat(FILE_LINES + 1));
        assert_eq!(size(&long, &long.text).map(|finding| finding.line), Some(1));
    }

    #[test]
    fn only_certain_code_counts_as_commented_out() {
        let file = rust(
            "// let x = 1;\n// Let us wait;\n// use the old one: it still works\n//     foo(x)\n// }\n",
        );
        assert_eq!(lines_of(&commented_out(&file, &code_of(&file.text))), [1, 5]);
    }

    #[test]
    fn places_of_one_machine_are_found() {
        let text = PLACES.map(|place| format!("see `/{place}/x`\n")).concat();
        assert_eq!(words(&rust(&text)).len(), PLACES.len());
        let fine = "crates/home/x\n/etc/passwd\na/tmp/b\n./work/x\n/workshop/x\n/tmpfile\n";
        assert_eq!(words(&rust(fine)), []);
        let up = |ups: usize| words(&rust(&format!("see {}x", "../".repeat(ups)))).len();
        assert_eq!([1, 3, 4, 6].map(up), [0, 0, 1, 1]);
    }

    #[test]
    fn only_known_hosts_are_pointed_to() {
        let url = |host: &str| words(&rust(&format!("at {}://{host}/x", "https")));
        for fine in ["api.weixin.qq.com", "www.example.com", "b.test", "127.0.0.1:7080", "{host}"] {
            assert_eq!(url(fine), [], "{fine}");
        }
        for foreign in ["index.registry.net", "notexample.com", "qq.com", "mirror.somewhere.org"] {
            assert_eq!(url(foreign).len(), 1, "{foreign}");
        }
        assert_eq!(lines_of(&words(&rust(&format!("an Issue #{}\nissue #x", 12)))), [1]);
    }

    #[test]
    fn declarations_are_counted_whatever_their_visibility() {
        let text =
            "pub trait A {}\npub(crate) trait B {}\ntrait C {}\n// trait D {}\nx(\"trait E\");";
        let file = rust(text);
        let found = declarations(&file, &code_of(&file.text), "trait ");
        assert_eq!(found.len(), 3);
        assert_eq!(lines_of(&too_many("traits", 2, &found)), [3]);
    }

    #[test]
    fn a_crate_has_one_integration_binary() {
        let at =
            |path: &str| test_binaries(&TextFile { path: path.to_owned(), text: String::new() });
        assert_eq!(at("crates/a/tests/it/main.rs"), None);
        assert_eq!(at("crates/a/tests/it/token.rs"), None);
        assert!(at("crates/a/tests/token.rs").is_some());
        assert!(at("crates/a/tests/other/main.rs").is_some());
    }
}
