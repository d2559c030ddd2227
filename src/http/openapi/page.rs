//! The OpenAPI document as one page of HTML that fetches nothing.

use std::fmt::{self, Write};

use serde_json::Value;

const STYLE: &str = include_str!("page.css");
const METHODS: [&str; 4] = ["get", "post", "put", "delete"];

pub fn write(document: &Value) -> String {
    let mut page = String::new();
    write_page(&mut page, document).expect("a String takes everything");
    page
}

fn write_page(out: &mut String, document: &Value) -> fmt::Result {
    let info = &document["info"];
    let title = Escaped(text(&info["title"]));
    write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title}: HTTP API</title><style>{STYLE}</style></head><body>\
         <header><h1>{title} <small>HTTP API {}</small></h1>",
        Escaped(text(&info["version"])),
    )?;
    paragraphs(out, text(&info["description"]))?;
    out.push_str("<p>For machines: <a href=\"/openapi.json\">openapi.json</a></p>");
    keys(out, document)?;
    out.push_str("<nav>");
    for tag in elements(&document["tags"]) {
        let name = Escaped(text(&tag["name"]));
        write!(out, "<a href=\"#{name}\">{name}</a> ")?;
    }
    out.push_str("</nav></header><main>");
    for tag in elements(&document["tags"]) {
        let name = text(&tag["name"]);
        write!(out, "<section id=\"{0}\"><h2>{0}</h2>", Escaped(name))?;
        paragraphs(out, text(&tag["description"]))?;
        for (path, method, operation) in operations(document).filter(|(.., operation)| is_tagged(operation, name)) {
            write_operation(out, path, method, operation)?;
        }
        out.push_str("</section>");
    }
    out.push_str("<section id=\"schemas\"><h2>Bodies</h2>");
    for (name, schema) in members(&document["components"]["schemas"]) {
        write!(out, "<h3 id=\"schema-{0}\"><code>{0}</code></h3>", Escaped(name))?;
        paragraphs(out, text(&schema["description"]))?;
        write_schema(out, schema)?;
    }
    out.push_str("</section></main></body></html>\n");
    Ok(())
}

/// The headers that requests are let in by.
fn keys(out: &mut String, document: &Value) -> fmt::Result {
    out.push_str("<ul>");
    for (_, scheme) in members(&document["components"]["securitySchemes"]) {
        let (header, what) = (Escaped(text(&scheme["name"])), Escaped(text(&scheme["description"])));
        write!(out, "<li><code>{header}</code>: {what}</li>")?;
    }
    out.push_str("</ul>");
    Ok(())
}

fn operations(document: &Value) -> impl Iterator<Item = (&str, &'static str, &Value)> {
    members(&document["paths"]).flat_map(|(path, item)| {
        let of_method = move |method| Some((path, method, item.get(method)?));
        METHODS.into_iter().filter_map(of_method)
    })
}

fn is_tagged(operation: &Value, tag: &str) -> bool {
    elements(&operation["tags"]).any(|of| of == tag)
}

fn write_operation(out: &mut String, path: &str, method: &str, operation: &Value) -> fmt::Result {
    let (shown, path) = (method.to_uppercase(), Escaped(path));
    write!(
        out,
        "<article><h3><b class=\"{method}\">{shown}</b> <code>{path}</code></h3>"
    )?;
    paragraphs(out, text(&operation["summary"]))?;
    paragraphs(out, text(&operation["description"]))?;
    let keys = elements(&operation["security"]).flat_map(members).map(|(name, _)| name);
    let needs = keys.map(|key| match key {
        "device_token" => "X-DEVICETOKEN",
        _ => "X-APITOKEN",
    });
    out.push_str("<table>");
    for header in needs {
        write!(
            out,
            "<tr><th>header</th><td><code>{header}</code></td><td>required</td><td></td></tr>"
        )?;
    }
    for parameter in elements(&operation["parameters"]) {
        let required = if parameter["required"] == true { "required" } else { "" };
        write!(
            out,
            "<tr><th>{}</th><td><code>{}</code></td><td>{required}</td><td>{}</td></tr>",
            Escaped(text(&parameter["in"])),
            Escaped(text(&parameter["name"])),
            Marked(text(&parameter["description"])),
        )?;
    }
    let body = &operation["requestBody"];
    if !body.is_null() {
        let required = if body["required"] == true { "required" } else { "" };
        out.push_str("<tr><th>body</th><td>");
        write_content(out, body)?;
        write!(
            out,
            "</td><td>{required}</td><td>{}</td></tr>",
            Marked(text(&body["description"]))
        )?;
    }
    for (status, answer) in members(&operation["responses"]) {
        write!(out, "<tr><th>{}</th><td>", Escaped(status))?;
        write_content(out, answer)?;
        write!(
            out,
            "</td><td></td><td>{}</td></tr>",
            Marked(text(&answer["description"]))
        )?;
    }
    out.push_str("</table></article>");
    Ok(())
}

/// The schema of a body.
fn write_content(out: &mut String, body: &Value) -> fmt::Result {
    match members(&body["content"]).next() {
        Some((_, content)) => write_type(out, &content["schema"]),
        None => Ok(()),
    }
}

fn write_schema(out: &mut String, schema: &Value) -> fmt::Result {
    let of_several = elements(&schema["oneOf"]).chain(elements(&schema["allOf"]));
    for one in of_several {
        write_schema(out, one)?;
    }
    let required: Vec<&Value> = elements(&schema["required"]).collect();
    let mut properties = members(&schema["properties"]).peekable();
    if properties.peek().is_none() {
        if schema["oneOf"].is_null() && schema["allOf"].is_null() {
            out.push_str("<p>");
            write_type(out, schema)?;
            out.push_str("</p>");
        }
        return Ok(());
    }
    out.push_str("<table>");
    for (name, property) in properties {
        let is_required = required.iter().any(|required| *required == name);
        write!(out, "<tr><td><code>{}</code></td><td>", Escaped(name))?;
        write_type(out, property)?;
        write!(
            out,
            "</td><td>{}</td><td>{}",
            if is_required { "" } else { "optional" },
            Marked(text(&property["description"])),
        )?;
        if let Some(example) = property.get("example") {
            write!(out, " <i>Example:</i> <code>{}</code>", Escaped(&example.to_string()))?;
        }
        out.push_str("</td></tr>");
    }
    out.push_str("</table>");
    Ok(())
}

/// A type in a few words, with a link to what has a name.
fn write_type(out: &mut String, schema: &Value) -> fmt::Result {
    if let Some(name) = text(&schema["$ref"]).rsplit('/').next().filter(|name| !name.is_empty()) {
        return write!(out, "<a href=\"#schema-{0}\">{0}</a>", Escaped(name));
    }
    let several = elements(&schema["oneOf"]).chain(elements(&schema["anyOf"]));
    for (place, one) in several.enumerate() {
        if place > 0 {
            out.push_str(" or ");
        }
        write_type(out, one)?;
    }
    if let Some(names) = schema["enum"].as_array() {
        let names: Vec<String> = names
            .iter()
            .map(|name| format!("<code>{}</code>", Escaped(text(name))))
            .collect();
        out.push_str(&names.join(" "));
        return Ok(());
    }
    match &schema["type"] {
        Value::String(name) if name == "array" => {
            out.push_str("list of ");
            write_type(out, &schema["items"])?;
        }
        Value::String(name) => out.push_str(name),
        Value::Array(names) => {
            let names: Vec<&str> = names.iter().map(text).collect();
            out.push_str(&names.join(" or "));
        }
        _ => {}
    }
    Ok(())
}

fn paragraphs(out: &mut String, text: &str) -> fmt::Result {
    for paragraph in text.split("\n\n").filter(|paragraph| !paragraph.is_empty()) {
        write!(out, "<p>{}</p>", Marked(paragraph))?;
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn elements(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn members(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.as_str(), value))
}

/// Text that is no markup.
struct Escaped<'t>(&'t str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Text in which what stands between two backticks is code.
struct Marked<'t>(&'t str);

impl fmt::Display for Marked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, part) in self.0.split('`').enumerate() {
            match place % 2 {
                0 => write!(f, "{}", Escaped(part))?,
                _ => write!(f, "<code>{}</code>", Escaped(part))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::as_json;
    use super::*;

    #[test]
    fn the_page_has_every_operation_and_body_and_fetches_nothing() {
        let document = as_json(true);
        let page = write(&document);
        let mut count = 0;
        for (path, method, _) in operations(&document) {
            let heading = format!(
                "<b class=\"{method}\">{}</b> <code>{path}</code>",
                method.to_uppercase()
            );
            assert!(page.contains(&heading), "{heading}");
            count += 1;
        }
        assert_eq!(count, 25);
        for (name, _) in members(&document["components"]["schemas"]) {
            assert!(page.contains(&format!("id=\"schema-{name}\"")));
        }
        for fetched in ["<script", "<img", "<link", "@import", "url(", "http://", "https://"] {
            assert!(!page.contains(fetched), "{fetched}");
        }
        // Every link within the page leads somewhere.
        for link in page.split("href=\"#").skip(1) {
            let target = &link[..link.find('"').unwrap()];
            assert!(page.contains(&format!("id=\"{target}\"")), "{target}");
        }
    }

    #[test]
    fn text_is_no_markup() {
        assert_eq!(
            Escaped("<a href=\"x\">&</a>").to_string(),
            "&lt;a href=&quot;x&quot;&gt;&amp;&lt;/a&gt;"
        );
        assert_eq!(Marked("a `<b>` c").to_string(), "a <code>&lt;b&gt;</code> c");
    }
}
