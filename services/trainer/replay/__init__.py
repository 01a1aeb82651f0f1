"""The replay buffer, the steps that it holds, and the training targets made of them."""
