"""Run folders as one page that a person looks at: report.html."""
