//! Which topic names are allowed. A name becomes part of a directory name and of metric names; the latter do not
//! tell `.` from `_`, so two names that differ only there collide.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::error::{ApiError, ErrorName};
use crate::image::MetadataImage;
use crate::limits;

/// The topic in which Kafka keeps its own metadata; clients know it by this name.
const CLUSTER_METADATA: &str = "__cluster_metadata";

/// The names there are, and those that this request has added.
pub struct Names<'a> {
    image: &'a MetadataImage,
    /// By the name with every `.` as `_`.
    added: BTreeMap<String, String>,
}

impl<'a> Names<'a> {
    pub fn new(image: &'a MetadataImage) -> Self {
        Self { image, added: BTreeMap::new() }
    }

    pub fn add(&mut self, name: &str) {
        self.added.insert(name.replace('.', "_"), name.to_owned());
    }

    pub fn check(&self, name: &str) -> Result<(), ApiError> {
        if name == CLUSTER_METADATA {
            let message = format!("topic {name:?} is the cluster's own and cannot be created");
            return Err(ApiError::new(ErrorName::InvalidRequest, message));
        }
        check_form(name)?;
        if self.image.topic_names.contains_key(name) {
            return Err(ApiError::new(ErrorName::TopicAlreadyExists, format!("topic {name:?} already exists")));
        }
        match self.collision(name) {
            Some(other) => {
                Err(invalid(format!("topic {name:?} collides with {other:?}: '.' and '_' count as the same")))
            }
            None => Ok(()),
        }
    }

    fn collision(&self, name: &str) -> Option<&str> {
        if !name.contains(['.', '_']) {
            return None;
        }
        let added = self.added.get(&name.replace('.', "_")).map(String::as_str);
        added.or_else(|| self.existing_like(String::new(), name))
    }

    /// An existing name that begins with `prefix` and goes on like `rest`, with `.` and `_` counting as the same.
    /// Follows only prefixes that some name has, so it looks at a handful of names, not at all.
    fn existing_like(&self, mut prefix: String, rest: &str) -> Option<&'a str> {
        let Some(at) = rest.find(['.', '_']) else {
            prefix.push_str(rest);
            return self.image.topic_names.get_key_value(&prefix).map(|(name, _)| name.as_str());
        };
        prefix.push_str(&rest[..at]);
        ['.', '_'].into_iter().find_map(|separator| {
            let mut prefix = prefix.clone();
            prefix.push(separator);
            if !self.exists_with_prefix(&prefix) {
                return None;
            }
            self.existing_like(prefix, &rest[at + 1..])
        })
    }

    fn exists_with_prefix(&self, prefix: &str) -> bool {
        let mut from = self.image.topic_names.range::<_, str>((Bound::Included(prefix), Bound::Unbounded));
        from.next().is_some_and(|(name, _)| name.starts_with(prefix))
    }
}

fn check_form(name: &str) -> Result<(), ApiError> {
    if name.is_empty() {
        return Err(invalid("a topic name cannot be empty".to_owned()));
    }
    if name == "." || name == ".." {
        return Err(invalid(format!("topic name {name:?} has a meaning of its own in file systems")));
    }
    if name.len() > limits::TOPIC_NAME_LENGTH_MAX {
        let max = limits::TOPIC_NAME_LENGTH_MAX;
        return Err(invalid(format!("a topic name has at most {max} characters, this one has {}", name.len())));
    }
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match name.chars().find(|&c| !is_allowed(c)) {
        Some(c) => Err(invalid(format!("topic name {name:?} has {c:?}: only a-z A-Z 0-9 . _ - are allowed"))),
        None => Ok(()),
    }
}

fn invalid(message: String) -> ApiError {
    ApiError::new(ErrorName::InvalidTopic, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TopicId;

    fn image(names: &[&str]) -> MetadataImage {
        let mut image = MetadataImage::default();
        for name in names {
            image.topic_names.insert((*name).to_owned(), TopicId::default());
        }
        image
    }

    fn collision(existing: &[&str], name: &str) -> Option<String> {
        let image = image(existing);
        let names = Names::new(&image);
        names.collision(name).map(str::to_owned)
    }

    #[test]
    fn a_collision_is_found_wherever_it_lies() {
        assert_eq!(collision(&["a.b"], "a_b"), Some("a.b".to_owned()));
        assert_eq!(collision(&["a.b_c"], "a_b.c"), Some("a.b_c".to_owned()));
        assert_eq!(collision(&["a.b.c", "a_b.d", "a_b_e"], "a.b_d"), Some("a_b.d".to_owned()));
        assert_eq!(collision(&["_"], "."), Some("_".to_owned()));
        assert_eq!(collision(&["a.b", "ab", "a-b", "a.bc", "a."], "a_bd"), None);
    }

    #[test]
    fn many_names_with_one_prefix_cost_no_more() {
        let existing: Vec<String> = (0..20_000).map(|id| format!("team.service.topic_{id}")).collect();
        let existing: Vec<&str> = existing.iter().map(String::as_str).collect();
        assert_eq!(collision(&existing, "team_service_topic_7"), Some("team.service.topic_7".to_owned()));
        assert_eq!(collision(&existing, "team_service_topic_x"), None);
    }
}
