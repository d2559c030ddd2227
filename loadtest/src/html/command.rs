//! The command line of a run, as a report may show it.
//!
//! Called  by `html::write`.
//! Holds   - no credential is in it: neither as the value of its flag nor within another value, where it came from the
//!           environment too; a topic prefix may be a token, and is left out like one.

/// Flags whose values are not shown, the variables that stand in for them, and whether their value is looked for elsewhere.
const SECRETS: [(&str, &str, bool); 3] = [
    ("--password", "SKEIN_LOAD_PASSWORD", true),
    ("--api-token", "SKEIN_LOAD_API_TOKEN", true),
    ("--topic-prefix", "SKEIN_LOAD_TOPIC_PREFIX", false),
];

/// "skein-load throughput --password PASSWORD", to be pasted into a shell.
pub fn line(arguments: impl Iterator<Item = String>, variable: impl Fn(&str) -> Option<String>) -> String {
    let arguments: Vec<String> = arguments.skip(1).collect();
    let mut found: Vec<(String, String)> = Vec::new();
    for (flag, name, is_looked_for) in SECRETS {
        let given = arguments.iter().enumerate().filter_map(|(at, argument)| {
            let rest = argument.strip_prefix(flag)?;
            match rest.strip_prefix('=') {
                Some(value) => Some(value.to_string()),
                None if rest.is_empty() => arguments.get(at + 1).cloned(),
                None => None,
            }
        });
        let values = given
            .chain(variable(name))
            .filter(|value| is_looked_for && !value.is_empty());
        found.extend(values.map(|value| (value, shown(flag))));
    }
    // A secret within another goes first.
    found.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
    let mut words = vec!["skein-load".to_string()];
    let mut before = "";
    for argument in &arguments {
        let own = SECRETS.iter().find_map(|(flag, ..)| {
            let rest = argument.strip_prefix(flag)?;
            rest.starts_with('=').then(|| format!("{flag}={}", shown(flag)))
        });
        words.push(match SECRETS.iter().find(|(flag, ..)| *flag == before) {
            Some((flag, ..)) => shown(flag),
            None => own.unwrap_or_else(|| {
                let hidden = found.iter();
                hidden.fold(argument.clone(), |text, (value, name)| text.replace(value, name))
            }),
        });
        before = argument;
    }
    let quoted = words.iter().map(|word| match shlex::try_quote(word) {
        Ok(quoted) => quoted.into_owned(),
        // No shell can be given a NUL either.
        Err(_) => String::from("?"),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

fn shown(flag: &str) -> String {
    flag.trim_start_matches('-').replace('-', "_").to_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn shown_of(words: &str, variable: Option<(&str, &str)>) -> String {
        let words = format!("/usr/bin/skein-load {words}");
        line(words.split(' ').map(String::from), |name| {
            variable
                .filter(|(of, _)| *of == name)
                .map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn no_credential_is_shown_wherever_it_stands() {
        let words =
            "throughput --username u --password tok3n --topic-prefix tok3n/x --filter a/tok3n/b --password=tok3n";
        assert_eq!(
            shown_of(words, None),
            "skein-load throughput --username u --password PASSWORD --topic-prefix TOPIC_PREFIX --filter a/PASSWORD/b \
             '--password=PASSWORD'"
        );
        let text = shown_of("idle --filter tok3n/{} --qos 1", Some(("SKEIN_LOAD_PASSWORD", "tok3n")));
        assert_eq!(text, "skein-load idle --filter 'PASSWORD/{}' --qos 1");
        let text = shown_of("telemetry --api-token=abc --api http://h/abc", None);
        assert_eq!(
            text,
            "skein-load telemetry '--api-token=API_TOKEN' --api http://h/API_TOKEN"
        );
    }

    #[test]
    fn every_flag_that_hides_its_variable_is_a_secret() {
        fn arguments(command: &clap::Command) -> Vec<&clap::Arg> {
            let own = command.get_arguments();
            own.chain(command.get_subcommands().flat_map(arguments)).collect()
        }
        let command = crate::Arguments::command();
        let mut hidden: Vec<String> = arguments(&command)
            .into_iter()
            .filter(|argument| argument.is_hide_env_values_set())
            .filter_map(|argument| Some(format!("--{} {}", argument.get_long()?, argument.get_env()?.to_str()?)))
            .collect();
        hidden.sort();
        hidden.dedup();
        let mut known = SECRETS.map(|(flag, variable, _)| format!("{flag} {variable}"));
        known.sort();
        assert_eq!(hidden, known);
    }
}
