"""What a site takes out of its records before they are tokenised: rules of its own, and no part of any claim."""
