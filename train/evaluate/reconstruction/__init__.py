"""How closely a VAE reconstructs the images of a manifest: rFID, PSNR, SSIM and LPIPS."""
