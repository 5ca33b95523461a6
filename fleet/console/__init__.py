"""The admin console: three pages that work without JavaScript, and a sign-in."""
